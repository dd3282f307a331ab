"""What this machine can do at best: a plain read of memory, a bare matrix product."""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from aot_call import call
from machine import describe_machine

from mindformers_glm.backends.cpu import allocation, library, tile_packing

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8")
# fc1 of GLM-4-9B at a prefill of 512 tokens.
_GEMM_ROWS, _GEMM_IN, _GEMM_OUT = 512, 4096, 27392


class ReadProbe:
    """Reads one buffer in huge pages with all threads.

    Args:
        num_bytes: of the buffer; far more than the last-level cache.
    """

    def __init__(self, num_bytes: int) -> None:
        self._buffer = allocation.allocate((num_bytes // 4,), "float32")
        self._buffer[:] = 1
        self._read = library.load().glm_stream_read
        self.measure(1)  # starts the threads

    def measure(self, num_bytes: int = 4 << 30) -> float:
        """Read at least `num_bytes`; bytes per second, by the median of reads of the buffer."""
        repeats = -(-num_bytes // self._buffer.nbytes)
        address = self._buffer.ctypes.data
        seconds = _time(lambda: self._read(address, self._buffer.nbytes), repeats)
        return self._buffer.nbytes / seconds


class GemmProbe:
    """Multiplies 512 rows by one large bfloat16 matrix, with our own kernel."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._weight = allocation.allocate(
            tile_packing.packed_shape(_GEMM_OUT, _GEMM_IN), "bfloat16"
        )
        for start in range(0, _GEMM_OUT, 4096):
            rows = min(4096, _GEMM_OUT - start)
            values = rng.standard_normal((rows, _GEMM_IN), np.float32)
            tile_packing.pack_rows(self._weight, values, "float32", "bfloat16", start)
        self._x = rng.standard_normal((_GEMM_ROWS, _GEMM_IN), np.float32)
        self._out = np.empty((_GEMM_ROWS, _GEMM_OUT), np.float32)
        self.measure(1)

    def measure(self, repeats: int = 4) -> float:
        """Operations per second, by the median."""
        num_rows = np.array([_GEMM_ROWS], np.int32)
        seconds = _time(
            lambda: call("glm_linear_bf16", self._x, self._weight, num_rows, out=self._out), repeats
        )
        return 2 * _GEMM_ROWS * _GEMM_IN * _GEMM_OUT / seconds


def _time(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return median(times)


def describe() -> str:
    """Processor, instruction sets, cores, memory, versions, commit and load."""
    info = Path("/proc/cpuinfo").read_text()
    words = set(next((line for line in info.splitlines() if line.startswith("flags")), "").split())
    memory_kib = int(Path("/proc/meminfo").read_text().split()[1])
    return (
        f"{describe_machine()}\n"
        f"{', '.join(f for f in _FLAGS if f in words)}; {os.cpu_count()} cores, "
        f"{memory_kib / 2**20:.1f} GiB, {platform.system()} {platform.release()}, "
        f"load average {os.getloadavg()[0]:.1f} at the start"
    )
