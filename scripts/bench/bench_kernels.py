"""How close are the kernels to the limits of this machine?

Times bfloat16 linear layers of GLM-4-9B's fc1 shape at several numbers of rows, for each
instruction set, next to a plain read of the same number of bytes. A decode step (few rows) is as
fast as memory can be read, a prefill (many rows) as fast as products can be made.

    python scripts/bench/bench_kernels.py [--isa avx512] [--rows 1 8 32 512]

With --attention, times attention of the same model's shape instead (32 heads, 2 KV heads of 128,
float16 cache): sequences of --contexts tokens each, of which the last --rows are new.

    python scripts/bench/bench_kernels.py --attention [--contexts 512 8192 32768] [--rows 1 512]
"""

import argparse
import platform
import subprocess
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np

from mindformers_glm.core.attn_metadata import AttnMetadataBuffer
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
    parser.add_argument("--attention", action="store_true", help="instead of linear layers")
    parser.add_argument("--contexts", nargs="+", type=int, default=[512, 8192, 32768])
    parser.add_argument("--sequences", nargs="+", type=int, default=[1])
    args = parser.parse_args()
    if args.attention:
        bench_attention(args)
        return

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


def bench_attention(args: argparse.Namespace) -> None:
    """Print one table; a line reads every cached token of all sequences once."""
    print(describe_machine())
    print("attention, 32 heads, 2 KV heads of 128, float16 cache; seqs x rows of context")
    print(
        f"{'kernel':>14} {'seqs':>5} {'rows':>5} {'context':>8} {'ms':>9} {'p90 ms':>9}"
        f" {'GB/s':>7} {'GFLOP/s':>8}"
    )
    for isa in args.isa:
        library.select_isa(isa)
        for context, num_seqs, rows in product(args.contexts, args.sequences, args.rows):
            if rows > context:
                continue
            # Caches used in turn, as the layers of a model are, more than the last cache level.
            steps = [AttentionStep(context, num_seqs, rows, seed) for seed in range(3)]
            while sum(step.num_bytes for step in steps) < 1 << 28:
                steps.append(AttentionStep(context, num_seqs, rows, len(steps)))
            median, p90 = measure(lambda i, steps=steps: steps[i % len(steps)].run(), args.seconds)
            print(
                f"{isa:>14} {num_seqs:>5} {rows:>5} {context:>8} {median * 1e3:9.3f} "
                f"{p90 * 1e3:9.3f} {steps[0].num_bytes / median / 1e9:7.1f} "
                f"{steps[0].flop / median / 1e9:8.0f}"
            )


class AttentionStep:
    """Arguments of one attention call.

    Attributes:
        num_bytes: keys and values of all sequences.
        flop: of the products with the tokens that a row may see.
    """

    NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, ROTARY_DIM, BLOCK_SIZE = 32, 2, 128, 64, 32

    def __init__(self, context: int, num_seqs: int, rows: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        blocks_per_seq = -(-context // self.BLOCK_SIZE)
        tables = rng.permutation(num_seqs * blocks_per_seq).astype(np.int32)
        tables = tables.reshape(num_seqs, blocks_per_seq)
        new = np.arange(context - rows, context, dtype=np.int32)
        slots = tables[:, new // self.BLOCK_SIZE] * self.BLOCK_SIZE + new % self.BLOCK_SIZE
        buffer = AttnMetadataBuffer(num_seqs * rows, num_seqs, blocks_per_seq)
        buffer.fill(
            np.tile(new, num_seqs),
            slots.ravel(),
            np.arange(num_seqs + 1, dtype=np.int32) * rows,
            np.full(num_seqs, context, np.int32),
            tables,
        )
        shape = (tables.size, self.NUM_KV_HEADS, self.BLOCK_SIZE, self.HEAD_DIM)
        some = rng.standard_normal(1 << 16, dtype=np.float32).astype(np.float16)
        width = (self.NUM_HEADS + 2 * self.NUM_KV_HEADS) * self.HEAD_DIM
        angles = rng.uniform(0, 6, (context, self.ROTARY_DIM // 2))
        self._inputs = (
            rng.standard_normal((num_seqs * rows, width), dtype=np.float32),
            np.hstack([np.cos(angles), np.sin(angles)]).astype(np.float32),
            np.resize(some, shape),
            np.resize(some[::-1], shape),
            buffer.array,
        )
        self._out = np.empty((num_seqs * rows, self.NUM_HEADS * self.HEAD_DIM), np.float32)
        self.num_bytes = 2 * 2 * num_seqs * context * self.NUM_KV_HEADS * self.HEAD_DIM
        self.flop = 4 * self.NUM_HEADS * self.HEAD_DIM * num_seqs * int(np.sum(new + 1))

    def run(self) -> None:
        """Write the new rows' keys and values and attend."""
        call("glm_attention", *self._inputs, out=self._out)


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
