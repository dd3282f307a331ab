"""How does the time of attention grow with the context?

Times the attention of GLM-4-9B's shape (32 heads, 2 KV heads of 128, float16 cache) for sequences
of --contexts tokens each, of which the last --rows are new, for each instruction set.

    python scripts/bench/bench_attention.py [--contexts 512 8192 32768] [--rows 1 512]
"""

import argparse
import time
from collections.abc import Callable
from itertools import product

import numpy as np
from aot_call import call
from machine import describe_machine, positive, run_main

from mindformers_glm.backends.cpu import allocation, library
from mindformers_glm.backends.cpu.attn_metadata import AttnMetadataBuffer


def main() -> None:
    """Print one table; a line reads every cached token of all sequences once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    isas = library.available_isas()
    parser.add_argument("--isa", nargs="+", choices=isas, default=[library.isa()])
    parser.add_argument("--rows", nargs="+", type=positive, default=[1, 512])
    parser.add_argument("--contexts", nargs="+", type=positive, default=[512, 8192, 32768])
    parser.add_argument("--sequences", nargs="+", type=positive, default=[1])
    parser.add_argument("--seconds", type=float, default=2.0, help="per line of the table")
    args = parser.parse_args()

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
            _repeat(some, shape),
            _repeat(some[::-1], shape),
            buffer.array,
        )
        self._out = np.empty((num_seqs * rows, self.NUM_HEADS * self.HEAD_DIM), np.float32)
        self.num_bytes = 2 * 2 * num_seqs * context * self.NUM_KV_HEADS * self.HEAD_DIM
        self.flop = 4 * self.NUM_HEADS * self.HEAD_DIM * num_seqs * int(np.sum(new + 1))

    def run(self) -> None:
        """Write the new rows' keys and values and attend."""
        call("glm_attention", *self._inputs, out=self._out)


def _repeat(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The values again and again, in memory as the engine keeps its cache."""
    array = allocation.allocate(shape, "float16")
    array[:] = np.resize(values, shape)
    return array


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


if __name__ == "__main__":
    run_main(main)
