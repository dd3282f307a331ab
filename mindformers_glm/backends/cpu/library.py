"""The C++ library of the kernels: where it is, its instruction set, its threads, its clock.

MindSpore opens the same file by the path that `library_path` returns, so what is chosen here holds
for its operators too. Nothing here imports MindSpore.
"""

import ctypes
import hashlib
import os
import sysconfig
from functools import cache
from importlib import metadata
from pathlib import Path

from mindformers_glm.config.num_threads import check_num_threads
from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.system.log import note
from mindformers_glm.system.processors import count_physical_cores

# csrc/dispatch.cc holds the same number; raise both when a symbol, its parameters or the tile
# layout changes.
ABI_VERSION = 16
ISA_VARIABLE = "MINDFORMERS_GLM_ISA"
THREADS_VARIABLE = "OMP_NUM_THREADS"

_TEXTS = (
    *("glm_isa", "glm_available_isa", "glm_compiler", "glm_left_out"),
    "glm_host_ranks_failure",
)
_FOLDER = Path(__file__).resolve().parent
# As setuptools names it for this interpreter: a tree may hold builds for several.
_LIBRARY_NAME = f"_kernels{sysconfig.get_config_var('EXT_SUFFIX')}"


@cache
def library_path() -> str:
    """Path of the built library.

    A source tree that was installed with `pip install .` has it in site-packages only, yet its
    Python files are those imported when a script is started in the folder: both are looked at.
    Raises:
        UnsupportedError: it is nowhere, or it was built for another version of this package.
    """
    candidates = [*_FOLDER.glob(_LIBRARY_NAME), *_installed_libraries()]
    if not candidates:
        raise UnsupportedError(
            f"The CPU kernels are not built: no {_LIBRARY_NAME} in {_FOLDER} or in an installed "
            "mindformers-glm. Run `pip install -e .` in the source folder (it needs g++)."
        )
    path = str(candidates[0])
    library = ctypes.CDLL(path)
    version = library.glm_abi_version()
    if version != ABI_VERSION:
        raise UnsupportedError(
            f"The CPU kernels in {path} have interface version {version}, this source needs "
            f"{ABI_VERSION}. Run `pip install -e .` in the source folder to build them again."
        )
    library.glm_source_hash.restype = ctypes.c_char_p
    built_from = library.glm_source_hash().decode()
    if (sources := _hash_sources()) and sources != built_from:
        note(
            f"the CPU kernels in {path} were built from other sources than those in "
            f"{_FOLDER / 'csrc'}; `pip install -e .` builds them again."
        )
    return path


@cache
def load() -> ctypes.CDLL:
    """Open the library, choose the instruction set and the number of threads, once per process.

    Raises:
        UnsupportedError: see `library_path`; or MINDFORMERS_GLM_ISA names an instruction set that
            this machine cannot run.
    """
    library = ctypes.CDLL(library_path())
    for text in _TEXTS:
        getattr(library, text).restype = ctypes.c_char_p
    address, code, count = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
    library.glm_pack_rows.argtypes = [address, code, address, code, *[count] * 5]
    library.glm_quantize_rows.argtypes = (
        [address] * 3 + [code, code] + [count] * 6 + [address, count, count]
    )
    library.glm_convert.argtypes = [address, code, address, code, count]
    library.glm_stream_read.argtypes = [address, count]
    library.glm_map_file.argtypes = [address, count, code, count]
    library.glm_first_touch.argtypes = [address, count, count]
    library.glm_operator_number.argtypes = [ctypes.c_char_p]
    library.glm_host_ranks_bytes.argtypes, library.glm_host_ranks_bytes.restype = [count], count
    library.glm_join_host_ranks.argtypes = [address, count, count, address, ctypes.c_double]
    library.glm_gather_bytes.argtypes = [address, address, count]
    if forced := os.environ.get(ISA_VARIABLE):
        _select(library, forced)
    _set_num_threads(library, None)
    if library.glm_left_out():
        note(f"the CPU kernels are slow, {describe_build(library)}; g++ 11 or later builds all.")
    return library


def isa() -> str:
    """The instruction set in use, by its name in csrc/dispatch.cc's tables ("avx512", "neon")."""
    return load().glm_isa().decode()


def describe_build(library: ctypes.CDLL | None = None) -> str:
    """The compiler that built the library, and which instruction sets it could not build."""
    library = library or load()
    left_out = library.glm_left_out().decode()
    return f"built by {library.glm_compiler().decode()}" + (left_out and f" without {left_out}")


def available_isas() -> tuple[str, ...]:
    """What this machine can run, the default first; amx_emulated runs only when asked for."""
    return _available(load())


def select_isa(name: str) -> None:
    """Use another instruction set from now on (tests and benchmarks).

    Raises:
        UnsupportedError: this machine cannot run it.
    """
    _select(load(), name)


def num_threads() -> int:
    """Threads the kernels use."""
    return load().glm_num_threads()


def set_num_threads(count: int | None) -> None:
    """Let all kernels of this process use `count` threads from now on.

    None: what OMP_NUM_THREADS says, else the physical cores that this process may run on.
    Raises:
        ConfigError: below 1, or more than the machine has processors.
    """
    check_num_threads(count)
    _set_num_threads(load(), count)


def operator_number(symbol: str) -> int:
    """The number by which a program names an operator (csrc/program.cc)."""
    number = load().glm_operator_number(symbol.encode())
    if number < 0:
        raise ValueError(f"there is no operator {symbol}")
    return int(number)


def keep_team() -> None:
    """Let the calling thread, and no other, keep its OpenMP threads awake between operators."""
    load().glm_keep_team()


def leave_team() -> None:
    """Dissolve the calling thread's OpenMP threads; the next operator gathers them again."""
    load().glm_leave_team()


def take_kernel_time() -> tuple[float, int]:
    """Seconds spent in operators since the last call of this function, and how many there were."""
    nanoseconds, calls = ctypes.c_int64(), ctypes.c_int64()
    load().glm_take_kernel_ns(ctypes.byref(nanoseconds), ctypes.byref(calls))
    return nanoseconds.value * 1e-9, calls.value


def check_result(code: int) -> None:
    """Raise RuntimeError where a function of the library has refused what it was given."""
    if code != 0:
        raise RuntimeError("a kernel refused its arguments; the line above says why")


def _select(library: ctypes.CDLL, name: str) -> None:
    if library.glm_select_isa(name.encode()) != 0:
        raise UnsupportedError(
            f"{ISA_VARIABLE}={name!r} cannot run on this machine: "
            f"available are {', '.join(_available(library))}."
        )


def _set_num_threads(library: ctypes.CDLL, count: int | None) -> None:
    if count is None:
        # OpenMP has read the variable; 0 is its number.
        count = 0 if os.environ.get(THREADS_VARIABLE) else count_physical_cores()
    library.glm_set_num_threads(count)


def _available(library: ctypes.CDLL) -> tuple[str, ...]:
    names: list[str] = []
    while (name := library.glm_available_isa(len(names))) is not None:
        names.append(name.decode())
    return tuple(names)


def _installed_libraries() -> list[Path]:
    # `pip install .` leaves metadata in the source folder too, which knows no library: all
    # distributions of this name are asked, not only the first on the path.
    paths = [
        Path(str(file.locate()))
        for distribution in metadata.distributions(name="mindformers-glm")
        for file in distribution.files or []
        if file.match(f"*/backends/cpu/{_LIBRARY_NAME}")
    ]
    return [path for path in paths if path.exists()]


def _hash_sources() -> str:
    """What setup.py computes when it builds; empty where the sources are not at hand."""
    digest = hashlib.sha256()
    sources = [p for p in sorted((_FOLDER / "csrc").rglob("*")) if p.suffix in (".cc", ".h")]
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16] if sources else ""
