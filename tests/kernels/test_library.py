"""Finding the library, choosing the instruction set, and its memory."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.backends.cpu import library
from mindformers_glm.backends.cpu.allocation import allocate
from mindformers_glm.core.errors import UnsupportedError

PRINT_ISA = "from mindformers_glm.backends.cpu import library; print(library.isa())"


def _run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        cwd=Path(library.__file__).parents[3],
        capture_output=True,
        text=True,
    )


@pytest.fixture
def forget_library() -> None:
    """Look for the library again, and once more after the test."""
    library.library_path.cache_clear()
    yield
    library.library_path.cache_clear()


@pytest.mark.parametrize("name", ["portable", "avx2", "avx512", "amx", "amx_emulated", "neon"])
def test_environment_forces_an_instruction_set(name: str) -> None:
    result = _run(PRINT_ISA, MINDFORMERS_GLM_ISA=name)
    if name in library.available_isas():
        assert result.stdout.strip() == name
    else:
        assert result.returncode != 0
        assert f"'{name}' cannot run on this machine: available are" in result.stderr


def test_unknown_instruction_set_lists_those_there_are() -> None:
    with pytest.raises(UnsupportedError, match=r"'sse9' cannot .* available are .*portable"):
        library.select_isa("sse9")


def test_portable_is_always_available() -> None:
    assert "portable" in library.available_isas()


def test_default_is_never_the_emulation() -> None:
    assert library.available_isas()[0] != "amx_emulated"


def test_the_compiler_is_named() -> None:
    assert re.fullmatch(r"built by (g\+\+|clang) \d+\.\S+", library.describe_build())


# What stands for a compiler that is too old tells so itself: none may be at hand.
_OLD_COMPILER = '#!/bin/sh\nexec g++ "$@" -U__GNUC__ -D__GNUC__=10 -O0\n'


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="has no fast paths")
def test_what_a_compiler_cannot_build_is_told_at_the_build_and_at_each_start(
    tmp_path: Path,
) -> None:
    compiler = tmp_path / "old-g++"
    compiler.write_text(_OLD_COMPILER)
    compiler.chmod(0o755)
    built = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "-b", tmp_path, "-t", tmp_path],
        env=os.environ | {"CXX": str(compiler)},
        cwd=Path(library.__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    left_out = "without (avx2, avx512, amx|neon, neon_dotprod, neon_bf16)"
    assert re.search(rf"warning: g\+\+ \S+ builds the kernels {left_out}:", built.stderr)
    (path,) = tmp_path.rglob("_kernels*.so")
    used = _run(
        "from mindformers_glm.backends.cpu import library\n"
        f"library.library_path = lambda: {str(path)!r}\n"
        "print(library.available_isas(), library.describe_build())"
    )
    assert re.search(rf"\('portable',\) built by g\+\+ \S+ {left_out}", used.stdout)
    assert re.search(rf"the CPU kernels are slow, built by g\+\+ \S+ {left_out};", used.stderr)


def test_missing_library_says_how_to_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forget_library: None
) -> None:
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    monkeypatch.setattr(library, "_installed_libraries", list)
    with pytest.raises(UnsupportedError, match=r"Run `pip install -e \.`"):
        library.library_path()


def test_installed_library_serves_a_source_tree_without_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, forget_library: None
) -> None:
    built = Path(library.library_path())
    library.library_path.cache_clear()
    monkeypatch.setattr(library, "_FOLDER", tmp_path)
    monkeypatch.setattr(library, "_installed_libraries", lambda: [built])
    assert library.library_path() == str(built)


def test_library_of_another_interface_is_refused(
    monkeypatch: pytest.MonkeyPatch, forget_library: None
) -> None:
    monkeypatch.setattr(library, "ABI_VERSION", library.ABI_VERSION + 1)
    with pytest.raises(UnsupportedError, match="interface version"):
        library.library_path()


def test_outdated_library_is_noticed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], forget_library: None
) -> None:
    monkeypatch.setattr(library, "_hash_sources", lambda: "0" * 16)
    library.library_path()
    assert "were built from other sources" in capsys.readouterr().err


def test_allocated_memory_is_zero_and_not_resident() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    array = allocate((1 << 26,), "float32")  # 256 MiB
    assert resident() - before < 8 << 20
    assert array.ctypes.data % (2 << 20) == 0
    assert not array[:: 1 << 20].any()
    array[-1] = 1


@pytest.mark.parametrize(
    ("shape", "dtype", "numpy_dtype"),
    [((), "float32", np.float32), ((0, 3), "float16", np.float16), ((5, 7), "bfloat16", np.uint16)],
)
def test_allocated_arrays_have_shape_and_type(
    shape: tuple[int, ...], dtype: str, numpy_dtype: type
) -> None:
    array = allocate(shape, dtype)
    assert array.shape == shape
    assert array.dtype == numpy_dtype
    assert array.flags.writeable
