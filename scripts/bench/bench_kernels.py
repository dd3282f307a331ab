"""How close are the linear kernels to the limits of this machine?

Times bfloat16 linear layers of GLM-4-9B's fc1 shape at several numbers of rows, for each
instruction set, next to a plain read of the same number of bytes. A decode step (few rows) is as
fast as memory can be read, a prefill (many rows) as fast as products can be made.

    python scripts/bench/bench_kernels.py [--isa avx512] [--rows 1 8 32 512]
"""

import argparse
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mindformers_glm.kernels.cpu import library, memory
from mindformers_glm.kernels.cpu.aot_call import call
from mindformers_glm.version import __version__

REPO = Path(__file__).resolve().parents[2]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--isa", nargs="+", default=[library.isa()], help="default: %(default)s")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 32, 512])
    parser.add_argument("--in_features", type=int, default=4096)
    parser.add_argument("--out_features", type=int, default=27392)
    parser.add_argument("--compute_dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--seconds", type=float, default=2.0, help="per line of the table")
    args = parser.parse_args()

    # Several copies, used in turn: one would stay in the last-level cache, as no real model does.
    shape = library.packed_shape(args.out_features, args.in_features)
    num_copies = max(2, -(-(1 << 30) // (2 * int(np.prod(shape)))))
    rng = np.random.default_rng(0)
    weights = [memory.allocate(shape, "bfloat16") for _ in range(num_copies)]
    row = rng.standard_normal((args.out_features, args.in_features), dtype=np.float32)
    for weight in weights:
        library.pack_rows(weight, row, "float32", "bfloat16", 0)
    weight_bytes = weights[0].nbytes

    print(describe_machine())
    print(
        f"linear [{args.out_features}, {args.in_features}] bfloat16, {args.compute_dtype} products"
    )
    print(
        f"{'kernel':>14} {'rows':>5} {'ms':>9} {'p90 ms':>9} {'GB/s':>7} {'GFLOP/s':>8}"
        f" {'of read':>8}"
    )
    stream = library.load().glm_stream_read
    read_s, read_p90 = measure(
        lambda i: stream(weights[i % num_copies].ctypes.data, weight_bytes),
        args.seconds,
    )
    report("read", 0, read_s, read_p90, weight_bytes, 0, read_s)
    suffix = {"bfloat16": "bf16", "float32": "f32"}[args.compute_dtype]
    for isa in args.isa:
        library.select_isa(isa)
        for rows in args.rows:
            x = rng.standard_normal((rows, args.in_features), dtype=np.float32)
            out = np.empty((rows, args.out_features), np.float32)
            num_rows = np.array([rows], np.int32)
            median, p90 = measure(
                lambda i, x=x, num_rows=num_rows, out=out: call(
                    f"glm_linear_{suffix}", x, weights[i % num_copies], num_rows, out=out
                ),
                args.seconds,
            )
            report(isa, rows, median, p90, weight_bytes, 2 * rows * row.size, read_s)


def measure(run: Callable[[int], object], seconds: float) -> tuple[float, float]:
    """Median and 90th percentile of the time of one call, after two calls to warm up."""
    run(0)
    run(1)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        begin = time.perf_counter()
        run(len(times))
        times.append(time.perf_counter() - begin)
    return float(np.median(times)), float(np.percentile(times, 90))


def report(
    name: str, rows: int, seconds: float, p90: float, num_bytes: int, flop: int, read_s: float
) -> None:
    """Print one line."""
    print(
        f"{name:>14} {rows or '-':>5} {seconds * 1e3:9.2f} {p90 * 1e3:9.2f} "
        f"{num_bytes / seconds / 1e9:7.1f} {flop / seconds / 1e9:8.0f} {read_s / seconds:8.0%}"
    )


def describe_machine() -> str:
    """Machine, threads, versions and commit, as every benchmark says them."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPO, capture_output=True, text=True
    ).stdout.strip()
    return (
        f"{cpu}, {library.num_threads()} threads, "
        f"instruction sets {', '.join(library.available_isas())}\n"
        f"mindformers_glm {__version__} ({commit}), Python {platform.python_version()}, "
        f"numpy {np.__version__}"
    )


if __name__ == "__main__":
    main()
