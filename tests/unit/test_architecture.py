"""Imports go one way, and the device is chosen in one place (docs/structure.md)."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "mindformers_glm"

# A part may import its own level and those with a higher number.
_LEVEL = {
    "serving": 0,
    "launcher": 0,
    "evaluation": 0,
    "engine": 1,
    "models": 2,
    "backends": 3,
    "kernels": 4,
    "weights": 4,
    "quantization": 4,
    "layers": 4,
    "tokenizer": 4,
    "core": 5,
    "config": 5,
}
# Leaves of one level do not know each other.
_LEAVES = {"kernels", "weights", "quantization", "layers", "tokenizer"}
# (file, imported part): the exceptions, each with its reason beside it in the code.
_ALLOWED = {
    ("models/inference_model.py", "engine"),  # upstream's network.generate
}
_OUTSIDE = {"__init__.py", "__main__.py", "plugin.py", "version.py"}


def _imported_parts(path: Path) -> set[str]:
    parts = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            pieces = name.split(".")
            if pieces[0] == "mindformers_glm" and len(pieces) > 1 and pieces[1] in _LEVEL:
                parts.add(pieces[1])
    return parts


def _sources() -> list[Path]:
    return [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).as_posix() not in _OUTSIDE
    ]


@pytest.mark.parametrize("path", _sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    name = path.relative_to(PACKAGE).as_posix()
    own = name.split("/")[0].removesuffix(".py")
    for part in _imported_parts(path):
        if (name, part) in _ALLOWED:
            continue
        assert _LEVEL[part] >= _LEVEL[own], f"{name} imports {part}, which stands above it"
        same_leaf = part == own or not {part, own} <= _LEAVES
        assert same_leaf, f"{name} imports {part}: leaves do not know each other"


def test_only_the_two_configs_and_the_isa_override_read_the_environment() -> None:
    readers = {
        path.relative_to(PACKAGE).as_posix()
        for path in _sources()
        if re.search(r"os\.environ|os\.getenv", path.read_text(encoding="utf-8"))
    }
    assert readers <= {
        "config/run_config.py",
        "config/launch_config.py",
        "backends/cpu/library.py",
    }


def test_backend_words_stand_only_where_a_backend_is_chosen_or_written() -> None:
    word = re.compile(r"device_target\s*(==|!=)|is_ascend|is_cpu\b")
    for path in _sources():
        name = path.relative_to(PACKAGE).as_posix()
        if name != "backends.py" and not name.startswith("kernels/"):
            assert not word.search(path.read_text(encoding="utf-8")), name
