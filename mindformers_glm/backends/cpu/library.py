"""The C++ library of the kernels: where it is, which instruction set it uses, its helpers.

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

import numpy as np

from mindformers_glm.backends.cpu.allocation import HUGE_PAGE, OwnedMemory
from mindformers_glm.config.num_threads import check_num_threads
from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.quantization_scheme import GROUP_SIZES
from mindformers_glm.core.sharding import LARGEST_GROUP
from mindformers_glm.system.log import note
from mindformers_glm.system.processors import count_physical_cores

# csrc/dispatch.cc holds the same number; raise both when a symbol, its parameters or the tile
# layout changes.
ABI_VERSION = 16
TILE_N, TILE_K = 16, 32
# Columns of a tile of integer weights, by their bits.
INT_TILE_K = {8: 64, 4: 128}
ISA_VARIABLE = "MINDFORMERS_GLM_ISA"
THREADS_VARIABLE = "OMP_NUM_THREADS"

_TEXTS = (
    *("glm_isa", "glm_available_isa", "glm_compiler", "glm_left_out"),
    "glm_host_ranks_failure",
)
_DTYPE_CODES = {"float32": 0, "bfloat16": 1, "float16": 2}
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "uint8": 1}
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


def packed_shape(num_rows: int, num_columns: int, is_gated: bool = False) -> tuple[int, ...]:
    """Shape of a packed [num_rows, num_columns] matrix; gated: num_rows of each half."""
    tiles = -(-num_rows // TILE_N) * (2 if is_gated else 1)
    return (tiles, -(-num_columns // TILE_K), TILE_N, TILE_K)


def pack_rows(
    dst: np.ndarray,
    src: np.ndarray,
    src_dtype: str,
    dst_dtype: str,
    row_offset: int,
    gated_half: int | None = None,
) -> None:
    """Pack matrix rows into tiles, converting with rounding to nearest even.

    Args:
        dst: tiles [ceil(N/16), ceil(K/32), 16, 32], where line r of a tile holds columns 2r and
            2r + 1 of 16 rows (csrc/pack.cc); bfloat16 as any 2-byte type.
        src: [rows, K], contiguous, of any alignment; becomes packed rows row_offset...
        gated_half: where gate and up tiles alternate in dst: 0 for gate rows, 1 for up rows.
    """
    stride, first = (1, 0) if gated_half is None else (2, gated_half)
    _pack(dst, src, src_dtype, dst_dtype, row_offset, tile_stride=stride, tile_first=first)


def pack_gated(dst: np.ndarray, src: np.ndarray, src_dtype: str, dst_dtype: str) -> None:
    """Pack src [2F, K] (F gate rows, then F up rows) so that gate and up tiles alternate.

    Args:
        dst: tiles [2 * ceil(F/16), ceil(K/32), 16, 32].
    """
    half = src.shape[0] // 2
    for part in range(2):
        rows = src[part * half : (part + 1) * half]
        pack_rows(dst, rows, src_dtype, dst_dtype, 0, gated_half=part)


def quantized_shapes(
    num_rows: int, num_columns: int, bits: int, group_size: int, is_gated: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of an integer [num_rows, num_columns] matrix: uint8 tiles, float32 scales.

    Zero points have the shape of scales.

    Args:
        num_rows: of each half, where gated.
        bits: 8 or 4.
        group_size: columns that share a scale, 32, 64 or 128; for 8 bits also 0, the whole row.
    """
    if bits not in INT_TILE_K or (group_size not in GROUP_SIZES and (bits, group_size) != (8, 0)):
        raise ValueError(
            f"{bits} bits in groups of {group_size}: 8 by 0, or 8 or 4 by {GROUP_SIZES}"
        )
    tiles = -(-num_rows // TILE_N) * (2 if is_gated else 1)
    tiles_k = -(-num_columns // INT_TILE_K[bits])
    # Activations are quantized by whole groups of the largest size.
    padded = -(-num_columns // LARGEST_GROUP) * LARGEST_GROUP
    groups = padded // group_size if group_size else 1
    return (tiles, tiles_k, 16, 64), (tiles, groups, TILE_N)


def quantize_rows(
    tiles: np.ndarray,
    scales: np.ndarray,
    src: np.ndarray,
    src_dtype: str,
    bits: int,
    group_size: int,
    row_offset: int,
    gated_half: int | None = None,
    *,
    row_maxima: np.ndarray | None = None,
    kept: range | None = None,
) -> None:
    """Round matrix rows to integers (`reference.quantize_weight`) and pack them.

    Args:
        tiles, scales: arrays of `quantized_shapes`.
        src: [rows, K], contiguous, of any alignment; becomes packed rows row_offset...
        gated_half: where gate and up tiles alternate: 0 for gate rows, 1 for up rows.
        row_maxima: float32 [rows], the largest magnitudes that int8 scales are of; None: src's.
        kept: columns that are quantized; the others count for scales and become zeros. None: all.
    """
    _check_array(tiles, "uint8", is_written=True)
    _check_array(scales, "float32", is_written=True)
    _check_array(src, src_dtype)
    if bits == 8 and group_size:
        raise ValueError(f"int8 is rounded by rows, not by groups of {group_size}")
    rows, columns = src.shape
    if row_maxima is not None:
        _check_array(row_maxima, "float32")
        if row_maxima.shape != (rows,):
            raise ValueError(f"expected {rows} row maxima, got shape {row_maxima.shape}")
    stride, first = (1, 0) if gated_half is None else (2, gated_half)
    room = tiles.shape[0] // stride * TILE_N
    shapes = quantized_shapes(room, columns, bits, group_size, is_gated=stride == 2)
    if (tiles.shape, scales.shape) != shapes or not 0 <= row_offset <= room - rows:
        raise ValueError(
            f"rows {row_offset} to {row_offset + rows} of width {columns} do not fit "
            f"into int{bits} tiles of shape {tiles.shape} with scales of shape {scales.shape}"
        )
    code = load().glm_quantize_rows(
        tiles.ctypes.data,
        scales.ctypes.data,
        src.ctypes.data,
        _DTYPE_CODES[src_dtype],
        bits,
        group_size,
        rows,
        columns,
        row_offset,
        stride,
        first,
        None if row_maxima is None else row_maxima.ctypes.data,
        *((0, columns) if kept is None else (kept.start, kept.stop)),
    )
    _check_result(code)


def convert(dst: np.ndarray, src: np.ndarray, dst_dtype: str, src_dtype: str) -> None:
    """Convert every element of src (of any alignment) into dst, rounding to nearest even."""
    _check_array(dst, dst_dtype, is_written=True)
    _check_array(src, src_dtype)
    if dst.size != src.size:
        raise ValueError(f"dst has {dst.size} elements, src has {src.size}")
    code = load().glm_convert(
        dst.ctypes.data, _DTYPE_CODES[dst_dtype], src.ctypes.data, _DTYPE_CODES[src_dtype], src.size
    )
    _check_result(code)


def map_file(array: np.ndarray, file: int, offset: int) -> None:
    """Let an array of allocation.allocate, of 2 MiB or more, be a part of an open file.

    Writing to it changes only this process's memory. The file must not become shorter meanwhile.

    Args:
        file: descriptor, which may be closed afterwards; -1: fresh memory instead of a file.
        offset: a multiple of 2 MiB.
    Raises:
        ValueError: the array is not the whole of such memory (`OwnedMemory.of`).
    """
    memory = OwnedMemory.of(array)  # held: the memory must not go meanwhile
    _check_result(load().glm_map_file(array.ctypes.data, memory.num_bytes, file, offset))


def give_back(array: np.ndarray) -> None:
    """Let the system have the memory of an array of allocation.allocate; it holds zeros afterwards.

    Arrays below 2 MiB are left alone; `map_file` says which others are refused.
    """
    if array.nbytes >= HUGE_PAGE:
        map_file(array, -1, 0)


def first_touch(array: np.ndarray) -> None:
    """Write zeros into memory that nobody has written yet, by the threads that will read it.

    Rows of `array` (tile rows of a packed matrix) go to threads as the kernels share them out.
    """
    if not array.flags.c_contiguous or not array.flags.writeable:
        raise ValueError("expected a contiguous array that can be written to")
    if array.nbytes:
        _check_result(load().glm_first_touch(array.ctypes.data, array.nbytes, max(len(array), 1)))


def _pack(
    dst: np.ndarray,
    src: np.ndarray,
    src_dtype: str,
    dst_dtype: str,
    row_offset: int,
    tile_stride: int,
    tile_first: int,
) -> None:
    _check_array(dst, dst_dtype, is_written=True)
    _check_array(src, src_dtype)
    rows, columns = src.shape
    room = dst.shape[0] // tile_stride * TILE_N
    if dst.shape[1:] != packed_shape(rows, columns)[1:] or not 0 <= row_offset <= room - rows:
        raise ValueError(
            f"rows {row_offset} to {row_offset + rows} of width {columns} do not fit "
            f"into tiles of shape {dst.shape}"
        )
    code = load().glm_pack_rows(
        dst.ctypes.data,
        _DTYPE_CODES[dst_dtype],
        src.ctypes.data,
        _DTYPE_CODES[src_dtype],
        rows,
        columns,
        row_offset,
        tile_stride,
        tile_first,
    )
    _check_result(code)


def _check_array(array: np.ndarray, dtype: str, is_written: bool = False) -> None:
    # numpy calls an unaligned array not C-contiguous in no way; only the strides count here.
    if not array.flags.c_contiguous or array.itemsize != _ITEM_BYTES[dtype]:
        raise ValueError(
            f"expected a contiguous {dtype} array, got {array.dtype} strides {array.strides}"
        )
    if is_written and not array.flags.writeable:
        raise ValueError("the destination is read-only")


def _check_result(code: int) -> None:
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
