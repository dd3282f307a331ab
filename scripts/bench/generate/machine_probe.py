"""What this machine can do at best: a plain read of memory, a bare matrix product."""

import os
import platform
import time
from pathlib import Path
from statistics import median

import numpy as np
from bench_kernels import describe_machine

from mindformers_glm.kernels.cpu import library, memory
from mindformers_glm.kernels.cpu.aot_call import call

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8")
# fc1 of GLM-4-9B at a prefill of 512 tokens.
_GEMM_ROWS, _GEMM_IN, _GEMM_OUT = 512, 4096, 27392


class ReadProbe:
    """Reads one buffer in huge pages with all threads.

    Args:
        num_bytes: of the buffer; far more than the last-level cache.
    """

    def __init__(self, num_bytes: int) -> None:
        self._buffer = memory.allocate((num_bytes // 4,), "float32")
        self._buffer[:] = 1
        self._read = library.load().glm_stream_read
        self.read_bytes_per_s(1)  # starts the threads

    def read_bytes_per_s(self, num_bytes: int = 4 << 30) -> float:
        """Read at least `num_bytes` and return the speed; the median of reads of the buffer."""
        times = []
        for _ in range(-(-num_bytes // self._buffer.nbytes)):
            begin = time.perf_counter()
            self._read(self._buffer.ctypes.data, self._buffer.nbytes)
            times.append(time.perf_counter() - begin)
        return self._buffer.nbytes / median(times)


def measure_gemm(repeats: int = 10) -> float:
    """FLOP/s of our own bfloat16 kernel on one large product."""
    rng = np.random.default_rng(0)
    weight = memory.allocate(library.packed_shape(_GEMM_OUT, _GEMM_IN), "bfloat16")
    for start in range(0, _GEMM_OUT, 4096):
        rows = min(4096, _GEMM_OUT - start)
        values = rng.standard_normal((rows, _GEMM_IN), np.float32)
        library.pack_rows(weight, values, "float32", "bfloat16", start)
    x = rng.standard_normal((_GEMM_ROWS, _GEMM_IN), np.float32)
    out = np.empty((_GEMM_ROWS, _GEMM_OUT), np.float32)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call("glm_linear_bf16", x, weight, np.array([_GEMM_ROWS], np.int32), out=out)
        times.append(time.perf_counter() - begin)
    return 2 * _GEMM_ROWS * _GEMM_IN * _GEMM_OUT / median(times)


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
