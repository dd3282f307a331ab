"""Who reads a variable, looked up in the files of MindSpore and MindSpore Transformers."""

import mmap
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from mindformers_glm.config.known_variables import KNOWN_VARIABLES, KnownVariable
from tests.unit.test_docs import ROOT

_LARGE = 13 * 2**20  # larger ones hold none of the names (looked at once, up to 60 MB)
_OTHER_DEVICES = ("gpu", "cuda", "akg", "opencv", "avcodec")
_UPSTREAM = ("MindSpore", "MindSpore Transformers")


def _files() -> Iterator[Path]:
    for package in ("mindspore", "mindformers"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        for pattern in ("*.py", "*.so*"):
            for path in folder.rglob(pattern):
                is_other = any(word in str(path.relative_to(folder)) for word in _OTHER_DEVICES)
                if not is_other and 0 < path.stat().st_size < _LARGE:
                    yield path


@cache
def _names_in_upstream() -> frozenset[str]:
    """Names of the table that upstream's files hold, between signs that no name has."""
    names = [row.name.encode() for row in KNOWN_VARIABLES]
    found = set()
    for path in _files():
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
            for name in names:
                position = text.find(name)
                while position >= 0 and name not in found:
                    around = text[max(position - 1, 0) : position + len(name) + 1]
                    if re.fullmatch(rb"\W?" + name + rb"\W?", around):
                        found.add(name)
                    position = text.find(name, position + 1)
    return frozenset(name.decode() for name in found)


@pytest.mark.slow
@pytest.mark.parametrize("row", KNOWN_VARIABLES, ids=lambda row: row.name)
def test_readers_are_those_whose_files_hold_the_name(row: KnownVariable) -> None:
    is_there = row.name in _names_in_upstream()
    if any(word in row.reader for word in _UPSTREAM):
        assert is_there
    if not row.devices:
        assert not is_there


def test_names_are_told_once_and_ids_are_those_of_the_feature_table() -> None:
    names = [row.name for row in KNOWN_VARIABLES]
    assert len(set(names)) == len(names)
    table = (ROOT / "docs/feature_table.md").read_text(encoding="utf-8")
    ids = {feature_id for row in KNOWN_VARIABLES for feature_id in row.ids}
    assert [feature_id for feature_id in ids if f"| {feature_id} |" not in table] == []


@pytest.mark.parametrize(
    "name",
    [
        "HCCL_OP_BASE_FFTS_MODE_ENABLE",
        "ATB_OPERATION_EXECUTE_ASYNC",
        "TASK_QUEUE_ENABLE",
        "HCCL_BUFFSIZE",
        "ATB_LAYER_INTERNAL_TENSOR_REUSE",
        "ATB_USE_TILING_COPY_STREAM",
    ],
)
def test_the_variables_of_the_guides_are_known(name: str) -> None:
    (row,) = (row for row in KNOWN_VARIABLES if row.name == name)
    assert "B15" in row.ids


def test_an_effect_is_said_where_it_is() -> None:
    row = KnownVariable("A", "x", "does y", ("Ascend",))
    assert row.describe("Ascend") == "does y (read by x)"
    assert row.describe("CPU") == "no effect on CPU; does y (read by x)"
    assert KnownVariable("A", "x", "does y", ()).describe("CPU") == "no effect; does y (read by x)"
