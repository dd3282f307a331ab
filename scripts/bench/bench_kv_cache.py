"""How much faster does a model decode with another type of KV cache?

Decodes one token of --sequences sequences of --context tokens each, with a cache of each --cache.
The caches are filled with random bytes, as a prefill of so many tokens would take minutes and time
does not depend on what they hold. The models are loaded together and take turns, step by step.

    python scripts/bench/bench_kv_cache.py DIR [--quantization w4a16] [--context 32768] \\
        [--sequences 8] [--cache float16 int8]

DIR is a checkpoint of make_slice.py. A slice of few layers spends a larger share on its output
layer than the whole model.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from machine import describe_machine, positive, run_main

from mindformers_glm import LLM
from mindformers_glm.backends import ModelBatch

_WARM_UP = 3


def main() -> None:
    """Print one line for each type."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quantization")
    parser.add_argument("--context", type=positive, default=32768)
    parser.add_argument("--sequences", type=positive, default=8)
    parser.add_argument("--cache", nargs="+", default=["float16", "int8"])
    parser.add_argument("--steps", type=positive, default=15)
    args = parser.parse_args()

    print(describe_machine())
    models = {cache: _load(args, cache) for cache in args.cache}
    batches = [_make_batch(args.sequences, args.context, seed) for seed in range(4)]
    times: dict[str, list[float]] = {cache: [] for cache in models}
    for step in range(_WARM_UP + args.steps):
        for cache, llm in models.items():
            begin = time.perf_counter()
            llm.engine.runner.execute(batches[step % len(batches)])
            times[cache].append(time.perf_counter() - begin)
    print(
        f"decode of {args.sequences} sequences of {args.context} tokens, "
        f"{args.quantization or 'float'} weights; times as fast as the first"
    )
    print(
        f"{'cache':>9} {'bytes/token':>11} {'step ms':>9} {'p90 ms':>9} {'tokens/s':>9} "
        f"{'times':>6}"
    )
    first = float(np.median(times[args.cache[0]][_WARM_UP:]))
    for cache, found in times.items():
        median, p90 = np.percentile(found[_WARM_UP:], [50, 90])
        num_bytes = models[cache].engine.runner.kv_block_bytes // models[cache].settings.block_size
        print(
            f"{cache:>9} {num_bytes:>11} {median * 1e3:9.1f} {p90 * 1e3:9.1f} "
            f"{args.sequences / median:9.1f} {first / median:6.2f}"
        )


def _load(args: argparse.Namespace, cache: str) -> LLM:
    """A model whose cache has room for all sequences and is filled."""
    llm = LLM(
        args.folder,
        quantization=args.quantization,
        kv_cache_dtype=cache,
        max_model_len=args.context,
        max_num_seqs=args.sequences,
        packed_cache="off",
    )
    rng = np.random.default_rng(0)
    # Float16 and bfloat16 of these bits are numbers below 2, as scales are.
    some = rng.integers(0, 0x3C00, 1 << 16, dtype=np.uint16).view(np.uint8)
    for layer in llm.engine.runner.network.decoder.layers:
        for parameter in layer.self_attention.core_attention.caches:
            octets = parameter.asnumpy().reshape(-1).view(np.uint8)
            for begin in range(0, len(octets), len(some)):
                part = octets[begin : begin + len(some)]
                part[:] = some[: len(part)]
    return llm


def _make_batch(num_seqs: int, context: int, seed: int, block_size: int = 32) -> ModelBatch:
    """The last token of each sequence, whose blocks lie anywhere."""
    rng = np.random.default_rng(seed)
    tables = rng.permutation(num_seqs * -(-context // block_size)).reshape(num_seqs, -1)
    last = context - 1
    ones = np.ones(num_seqs, np.int32)
    return ModelBatch(
        token_ids=rng.integers(2, 500, num_seqs).astype(np.int32),
        positions=last * ones,
        slot_mapping=(tables[:, last // block_size] * block_size + last % block_size).astype(
            np.int32
        ),
        query_start=np.arange(num_seqs + 1, dtype=np.int32),
        seq_lens=context * ones,
        block_tables=tables.tolist(),
        sample_rows=np.arange(num_seqs, dtype=np.int32),
        is_prompt=0 * ones,
    )


if __name__ == "__main__":
    run_main(main)
