"""How close are the formats of weights to the limits of this machine?

Times linear layers of GLM-4-9B's fc1 shape at several numbers of rows, for each instruction set
and format of weights, by turns and each next to a plain read of as many bytes. A decode step (few
rows) is as fast as memory can be read, a prefill (many rows) as fast as products can be made.

    python scripts/bench/bench_kernels.py [--weights bfloat16 w8a16 w4a16_zeros w8a8_static ...]
        [--rows 1 8 32 512] [--group_size 128] [--isa avx512]

w8a16_groups, and what ends with _zeros or _ordered, only checkpoints have that are quantized: int8
by groups, zero points, columns in another order. They are timed where they are named.

--cpu_time on one thread (OMP_NUM_THREADS=1) is for machines that are busy with other work: it
leaves out the time in which another process had the core.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from aot_call import prepare
from machine import describe_machine, positive, run_main

from mindformers_glm.backends.cpu import allocation, library, tile_packing
from mindformers_glm.core.sharding import LARGEST_GROUP

# Weights and what activations are rounded to; float formats with the suffix of their symbol.
FLOAT_FORMATS = {"bfloat16": "bf16", "bfloat16_f32": "f32"}
FORMATS = (*FLOAT_FORMATS, "w8a8", "w8a16", "w4a8", "w4a16")
GIVEN_FORMATS = ("w8a8_static", "w8a8_mixed")  # activations have a scale of the checkpoint
STORED_FORMATS = (
    *("w8a8_token", *GIVEN_FORMATS, "w4a8_token"),
    "w8a16_groups",
    *(f"w{bits}a16{ends}" for bits in (8, 4) for ends in ("_zeros", "_ordered", "_zeros_ordered")),
)
DTYPE_NAMES = {"uint16": "bfloat16", "uint8": "uint8", "float32": "float32", "int32": "int32"}


@dataclass(frozen=True)
class Format:
    """One format of weights: `arrays` holds copies of what an operator takes, used in turn.

    One copy would stay in the last-level cache, as no real model does.
    """

    name: str
    symbol: str
    arrays: list[tuple[np.ndarray, ...]]

    @property
    def weight_bytes(self) -> int:
        """Bytes of one copy."""
        return sum(array.nbytes for array in self.arrays[0])


@dataclass
class Times:
    """Seconds of each call of an operator, and of a read of its weights right after it."""

    run: list[float]
    read: list[float]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    isas = library.available_isas()
    parser.add_argument("--isa", nargs="+", choices=isas, default=[library.isa()])
    parser.add_argument("--rows", nargs="+", type=positive, default=[1, 8, 32, 512])
    parser.add_argument("--in_features", type=positive, default=4096)
    parser.add_argument("--out_features", type=positive, default=27392)
    parser.add_argument("--weights", nargs="+", choices=FORMATS + STORED_FORMATS, default=FORMATS)
    parser.add_argument("--group_size", type=int, choices=(32, 64, 128), default=128)
    parser.add_argument("--copies_mb", type=positive, default=1024, help="of the weights together")
    parser.add_argument("--seconds", type=float, default=2.0, help="per line of the table")
    parser.add_argument("--cpu_time", action="store_true", help="of this thread, not wall time")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((args.out_features, args.in_features), dtype=np.float32)
    num_bytes = args.copies_mb << 20
    formats = [make_format(name, weight, args.group_size, num_bytes) for name in args.weights]
    clock = time.thread_time if args.cpu_time else time.perf_counter

    print(describe_machine())
    print(f"linear [{args.out_features}, {args.in_features}], int4 groups of {args.group_size}")
    print(
        f"{'kernel':>14} {'weights':>19} {'rows':>5} {'ms':>9} {'p90 ms':>9} {'GB/s':>7} "
        f"{'read GB/s':>9} {'of read':>8} {'GFLOP/s':>8}"
    )
    for isa in args.isa:
        library.select_isa(isa)
        for rows in args.rows:
            x = rng.standard_normal((rows, args.in_features), dtype=np.float32)
            times = measure(formats, x, args.out_features, args.seconds, clock)
            for weights in formats:
                report(isa, weights, rows, times[weights.name], 2 * rows * weight.size)


def make_format(name: str, weight: np.ndarray, group_size: int, num_bytes: int) -> Format:
    """Pack `weight` [N, K] and copy it until there are at least two copies of `num_bytes`."""
    if name in FLOAT_FORMATS:
        tiles = allocation.allocate(tile_packing.packed_shape(*weight.shape), "bfloat16")
        tile_packing.pack_rows(tiles, weight, "float32", "bfloat16", 0)
        packed: tuple[np.ndarray, ...] = (tiles,)
        symbol = f"glm_linear_{FLOAT_FORMATS[name]}"
    else:
        packed = pack_integers(name, weight, group_size)
        symbol = f"glm_linear_{name.removesuffix('_groups')}"
    copies = [packed]
    for _ in range(max(1, num_bytes // sum(a.nbytes for a in packed) - 1)):
        copy = tuple(allocation.allocate(a.shape, DTYPE_NAMES[a.dtype.name]) for a in packed)
        for target, source in zip(copy, packed, strict=True):
            target[...] = source
        copies.append(copy)
    return Format(name, symbol, copies)


def give_scale(tiles: np.ndarray, scales: np.ndarray, is_mixed: bool) -> tuple[np.ndarray, ...]:
    """Operands of int8 weights beside activations that have a scale and an offset of their own."""
    quant_bias = allocation.allocate((len(tiles), tile_packing.TILE_N), "int32")
    static_input = np.array([0.03, 3.0], np.float32)
    return (tiles, *((scales.copy(),) if is_mixed else ()), scales, quant_bias, static_input)


def pack_integers(name: str, weight: np.ndarray, group_size: int) -> tuple[np.ndarray, ...]:
    """What an operator on integers takes besides the activations and their number."""
    bits = int(name[1])
    group_size = group_size if bits == 4 else 0
    shapes = tile_packing.quantized_shapes(*weight.shape, bits, group_size)
    tiles = allocation.allocate(shapes[0], "uint8")
    scales = allocation.allocate(shapes[1], "float32")
    tile_packing.quantize_rows(tiles, scales, weight, "float32", bits, group_size, 0)
    if name.endswith("_groups"):
        scales = np.repeat(scales, weight.shape[1] // LARGEST_GROUP, axis=1)
    packed = [tiles, scales]
    rng = np.random.default_rng(0)
    if "_zeros" in name:
        packed.append(rng.integers(0, 1 << bits, scales.shape, dtype=np.uint8))
    if "_ordered" in name:
        packed.append(rng.permutation(weight.shape[1]).astype(np.int32))
    if name in GIVEN_FORMATS:
        return give_scale(tiles, scales, is_mixed=name == "w8a8_mixed")
    return tuple(packed)


def measure(
    formats: list[Format],
    x: np.ndarray,
    out_features: int,
    seconds: float,
    clock: Callable[[], float],
) -> dict[str, Times]:
    """Run the formats by turns, each followed by a read, after a turn to warm up."""
    stream = library.load().glm_stream_read
    out, num_rows = np.empty((len(x), out_features), np.float32), np.array([len(x)], np.int32)
    is_prompt = np.arange(len(x), dtype=np.int32) % 2
    times = {weights.name: Times([], []) for weights in formats}
    end = time.perf_counter() + seconds * len(formats)
    turn = 0
    while turn < 6 or time.perf_counter() < end:
        for weights in formats:
            copy = weights.arrays[turn % len(weights.arrays)]
            is_mixed = weights.name == "w8a8_mixed"
            rows = (is_prompt, num_rows) if is_mixed else (num_rows,)
            run = prepare(weights.symbol, x, *copy, *rows, out=out)
            begin = clock()
            run()
            middle = clock()
            for array in weights.arrays[(turn + len(weights.arrays) // 2) % len(weights.arrays)]:
                stream(array.ctypes.data, array.nbytes)
            if turn > 0:
                times[weights.name].run.append(middle - begin)
                times[weights.name].read.append(clock() - middle)
        turn += 1
    return times


def report(isa: str, weights: Format, rows: int, times: Times, flop: int) -> None:
    """Print one line of medians."""
    seconds, read_s = float(np.median(times.run)), float(np.median(times.read))
    print(
        f"{isa:>14} {weights.name:>19} {rows:>5} {seconds * 1e3:9.2f} "
        f"{np.percentile(times.run, 90) * 1e3:9.2f} {weights.weight_bytes / seconds / 1e9:7.1f} "
        f"{weights.weight_bytes / read_s / 1e9:9.1f} {read_s / seconds:8.0%} "
        f"{flop / seconds / 1e9:8.0f}"
    )


if __name__ == "__main__":
    run_main(main)
