"""How does the time of attention grow with the context?

Times the attention of GLM-4-9B's shape (32 heads, 2 KV heads of 128) for sequences of --contexts
tokens each, of which the last --rows are new, for each instruction set. Caches of each --cache take
turns, call by call, so that a ratio means something on a busy machine too. "int8" has a scale for
each token and head, "c8" for each channel.

    python scripts/bench/bench_attention.py [--contexts 512 8192 32768] [--rows 1 512] \
        [--cache float16 int8]
"""

import argparse
import itertools
import time
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from aot_call import call
from machine import describe_machine, positive, run_main

from mindformers_glm.backends.cpu import allocation, library
from mindformers_glm.backends.cpu.attn_metadata import AttnMetadataBuffer

# What a bench may compare, and the type of its keys and values.
_TYPES = {"float16": "float16", "float32": "float32", "int8": "uint8", "c8": "uint8"}
CACHES = tuple(_TYPES)


def main() -> None:
    """Print one table; a line reads every cached token of all sequences once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    isas = library.available_isas()
    parser.add_argument("--isa", nargs="+", choices=isas, default=[library.isa()])
    parser.add_argument("--rows", nargs="+", type=positive, default=[1, 512])
    parser.add_argument("--contexts", nargs="+", type=positive, default=[512, 8192, 32768])
    parser.add_argument("--sequences", nargs="+", type=positive, default=[1])
    parser.add_argument("--cache", nargs="+", choices=CACHES, default=["float16", "int8"])
    parser.add_argument("--seconds", type=float, default=2.0, help="per line of the table")
    args = parser.parse_args()

    print(describe_machine())
    print(
        "attention, 32 heads, 2 KV heads of 128; seqs x rows of context; times as fast as the first"
    )
    print(
        f"{'kernel':>14} {'cache':>8} {'seqs':>5} {'rows':>5} {'context':>8} {'ms':>9} "
        f"{'p90 ms':>9} {'GB/s':>7} {'GFLOP/s':>8} {'times':>6}"
    )
    for isa in args.isa:
        library.select_isa(isa)
        for context, num_seqs, rows in product(args.contexts, args.sequences, args.rows):
            if rows > context:
                continue
            # Caches used in turn, as the layers of a model are, more than the last cache level.
            steps = {cache: make_steps(context, num_seqs, rows, cache) for cache in args.cache}
            times = measure(steps, args.seconds)
            first = float(np.median(times[args.cache[0]]))
            for cache, found in times.items():
                step, median = steps[cache][0], float(np.median(found))
                print(
                    f"{isa:>14} {cache:>8} {num_seqs:>5} {rows:>5} {context:>8} "
                    f"{median * 1e3:9.3f} {np.percentile(found, 90) * 1e3:9.3f} "
                    f"{step.num_bytes / median / 1e9:7.1f} {step.flop / median / 1e9:8.0f} "
                    f"{first / median:6.2f}"
                )


class AttentionStep:
    """Arguments of one attention call.

    Args:
        cache: one of CACHES.

    Attributes:
        num_bytes: keys and values of all sequences, and their scales.
        flop: of the products with the tokens that a row may see.
    """

    NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, ROTARY_DIM, BLOCK_SIZE = 32, 2, 128, 64, 32

    def __init__(self, context: int, num_seqs: int, rows: int, seed: int, cache: str) -> None:
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
        width = (self.NUM_HEADS + 2 * self.NUM_KV_HEADS) * self.HEAD_DIM
        angles = rng.uniform(0, 6, (context, self.ROTARY_DIM // 2))
        self._inputs = (
            rng.standard_normal((num_seqs * rows, width), dtype=np.float32),
            np.hstack([np.cos(angles), np.sin(angles)]).astype(np.float32),
            *(_fill(rng, shape, _TYPES[cache]) for _ in range(2)),
            buffer.array,
            *_make_scales(rng, shape, cache),
        )
        self._out = np.empty((num_seqs * rows, self.NUM_HEADS * self.HEAD_DIM), np.float32)
        per_token = self.HEAD_DIM * self._inputs[2].itemsize + 4 * (cache == "int8")
        self.num_bytes = 2 * num_seqs * context * self.NUM_KV_HEADS * per_token
        self.flop = 4 * self.NUM_HEADS * self.HEAD_DIM * num_seqs * int(np.sum(new + 1))

    def run(self) -> None:
        """Write the new rows' keys and values and attend."""
        call("glm_attention", *self._inputs, out=self._out)


def make_steps(context: int, num_seqs: int, rows: int, cache: str) -> list[AttentionStep]:
    """As many as do not fit the last cache level, at least three."""
    steps = [AttentionStep(context, num_seqs, rows, seed, cache) for seed in range(3)]
    while sum(step.num_bytes for step in steps) < 1 << 28:
        steps.append(AttentionStep(context, num_seqs, rows, len(steps), cache))
    return steps


def _fill(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Some values again and again, in memory as the engine keeps its cache."""
    some = rng.standard_normal(1 << 16, dtype=np.float32)
    if dtype == "uint8":
        some = np.clip(np.rint(some * 40), -127, 127) + 128
    array = allocation.allocate(shape, dtype)
    array[:] = np.resize(some.astype(array.dtype), shape)
    return array


def _make_scales(
    rng: np.random.Generator, shape: tuple[int, ...], cache: str
) -> tuple[np.ndarray, ...]:
    """Such that integers stand for values of about 1."""
    if cache == "int8":
        return tuple(
            rng.uniform(0.02, 0.03, shape[:3]).astype(np.float32) for _ in ("keys", "values")
        )
    if cache == "c8":
        channels = shape[1] * shape[3]
        scale = rng.uniform(0.02, 0.03, channels).astype(np.float32)
        return (scale, np.zeros_like(scale)) * 2
    return ()


def measure(steps: Mapping[str, Sequence[AttentionStep]], seconds: float) -> dict[str, list[float]]:
    """Seconds of calls of each cache, which take turns, after two calls of each to warm up."""
    times: dict[str, list[float]] = {cache: [] for cache in steps}
    end = time.perf_counter() + seconds * len(steps)
    for count in itertools.count():
        if count == 2:
            times = {cache: [] for cache in steps}
        if count >= 7 and time.perf_counter() > end:
            return times
        for cache, some in steps.items():
            begin = time.perf_counter()
            some[count % len(some)].run()
            times[cache].append(time.perf_counter() - begin)
    raise AssertionError


if __name__ == "__main__":
    run_main(main)
