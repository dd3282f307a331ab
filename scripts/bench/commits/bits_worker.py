"""Worker of compare_commits.py: one rank that runs the same steps on every checkpoint.

    bits_worker.py --ranks 2 --threads 1 --output DIR FOLDER=FORMAT,FORMAT...

Runs under any commit, so of the package it uses little: `LLM`, the runner that one has, ModelBatch.
Writes DIR/NAME-FORMAT-RANK.npz, the logits of every step by its name.
"""

import argparse
import importlib
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from mindformers_glm import LLM

FORMATS: dict[str, dict[str, str]] = {
    "float32": {"params_dtype": "float32"},
    "bfloat16": {"params_dtype": "bfloat16"},
    "float16": {"params_dtype": "float16"},
    "w8a16": {"params_dtype": "bfloat16", "quantization": "w8a16"},
    "w8a8_dynamic": {"params_dtype": "bfloat16", "quantization": "w8a8_dynamic"},
    "w4a16": {"params_dtype": "bfloat16", "quantization": "w4a16"},
    "w4a8_dynamic": {"params_dtype": "bfloat16", "quantization": "w4a8_dynamic"},
}
BLOCK_SIZE = 16
MAX_NUM_SEQS, MAX_MODEL_LEN = 40, 640
MAX_NUM_BATCHED_TOKENS = 600  # one rank has graphs of 512 and of 600 rows

# (sequence, first position, end position, how many of the last rows are sampled)
Part = tuple[int, int, int, int]
_MANY = range(10, 46)
# Each step goes on with what the ones before have written. Ranks have graphs of 1, 8, 16, 32 ...
# rows and of so many samples, compiled on first use in seconds: steps keep to 8 and 64 of the
# rows, 8 and 32 of the samples.
STEPS: dict[str, list[Part]] = {
    "prefill": [(0, 0, 1, 1), (1, 0, 16, 1), (2, 0, 17, 1), (3, 0, 25, 1)],
    "decode": [(0, 1, 2, 1), (1, 16, 17, 1), (2, 17, 18, 1), (3, 25, 26, 1)],
    "first chunk": [(4, 0, 40, 0)],
    "chunk, decode": [(1, 17, 18, 1), (4, 40, 72, 1), (3, 26, 27, 1)],
    "drafts": [(0, 2, 6, 4), (1, 18, 21, 3), (2, 18, 19, 1)],
    # Sequence 0 took two of its rows, 1 none but the first: other tokens overwrite the rest.
    "drafts refused": [(0, 4, 7, 3), (1, 19, 20, 1)],
    "drafts, chunk": [(0, 7, 19, 12), (5, 0, 33, 0), (3, 27, 33, 6)],
    "all rows": [(6, 0, 40, 40)],
    "many prompts": [(number, 0, 1, 1) for number in _MANY],
    "many decode": [(number, 1, 2, 1) for number in _MANY],
    "nothing sampled": [(5, 33, 35, 0)],
}
# Only for one rank, which has fewer graphs.
LONG_STEPS: dict[str, list[Part]] = {
    "long prompt": [(7, 0, 520, 1)],
    "long decode": [(7, 520, 521, 1), (5, 35, 36, 1)],
    "long chunk": [(7, 521, 620, 1), (8, 0, 414, 20)],
    "decode of one": [(7, 620, 621, 1)],
}


def check_is_of_tree() -> None:
    """An installed package, or its library, must not stand in for the tree's."""
    import mindformers_glm

    tree = Path(os.environ["PYTHONPATH"].split(os.pathsep)[0])
    try:
        library = importlib.import_module("mindformers_glm.backends.cpu.library").library_path()
    except ModuleNotFoundError:  # where it was at first
        library = importlib.import_module("mindformers_glm.kernels.cpu.library").library_path()
    for path in (mindformers_glm.__file__, library):
        if not Path(str(path)).resolve().is_relative_to(tree.resolve()):
            raise SystemExit(f"error: {path} is not of the tree {tree}: build it there first")


def find_runner(llm: LLM) -> Any:
    """The model's runner, in whatever attribute of an attribute this commit keeps it."""
    found: list[Any] = [llm]
    for _ in range(4):
        for one in found:
            if hasattr(one, "execute") and hasattr(one, "allocate_kv_cache"):
                return one
        found = [part for one in found for part in vars(one).values() if hasattr(part, "__dict__")]
    raise LookupError("no attribute of LLM leads to a runner: see find_runner in bits_worker.py")


def find_batch_class() -> Any:
    """ModelBatch, which has moved."""
    for name in ("mindformers_glm.backends.runner", "mindformers_glm.engine.batch"):
        try:
            return importlib.import_module(name).ModelBatch
        except (ImportError, AttributeError):
            continue
    raise LookupError("there is no ModelBatch: see find_batch_class in bits_worker.py")


def find_isa() -> str:
    """The instruction set in use."""
    names = [name for name in sys.modules if name.endswith(".cpu.library")]
    return str(sys.modules[names[0]].isa())


def scatter_blocks(steps: dict[str, list[Part]]) -> dict[int, np.ndarray]:
    """Block tables of all sequences; no sequence's blocks lie side by side."""
    ends: dict[int, int] = {}
    for number, _, end, _ in (part for parts in steps.values() for part in parts):
        ends[number] = max(end, ends.get(number, 0))
    counts = [-(-end // BLOCK_SIZE) for end in ends.values()]
    blocks = np.random.default_rng(1).permutation(sum(counts)).astype(np.int32)
    return dict(zip(ends, np.split(blocks, np.cumsum(counts)[:-1]), strict=True))


def make_batch(parts: list[Part], tables: dict[int, np.ndarray], token_ids: np.ndarray) -> Any:
    """One step as the engine would make it."""
    positions = [np.arange(start, end, dtype=np.int32) for _, start, end, _ in parts]
    slots = [
        tables[number][where // BLOCK_SIZE] * BLOCK_SIZE + where % BLOCK_SIZE
        for (number, *_), where in zip(parts, positions, strict=True)
    ]
    query_start = np.cumsum([0, *map(len, positions)], dtype=np.int32)
    samples = [
        np.arange(end_row - num_samples, end_row, dtype=np.int32)
        for (*_, num_samples), end_row in zip(parts, query_start[1:], strict=True)
    ]
    made = find_batch_class()
    # A sequence's one row, and rows that are all sampled, are tokens of an answer.
    is_prompt = [
        np.full(end - start, not start or samples < min(end - start, 2), np.int32)
        for _, start, end, samples in parts
    ]
    # Commits before W8A8_MIX have no such field.
    known = {"is_prompt": np.concatenate(is_prompt)} if "is_prompt" in _names(made) else {}
    return made(
        token_ids=token_ids[: query_start[-1]],
        positions=np.concatenate(positions),
        slot_mapping=np.concatenate(slots).astype(np.int32),
        query_start=query_start,
        seq_lens=np.array([end for _, _, end, _ in parts], np.int32),
        block_tables=[
            tables[number][: -(-end // BLOCK_SIZE)].tolist() for number, _, end, _ in parts
        ],
        sample_rows=np.concatenate(samples),
        **known,
    )


def _names(dataclass: Any) -> set[str]:
    return {field.name for field in fields(dataclass)}


def run_steps(runner: Any, steps: dict[str, list[Part]]) -> dict[str, np.ndarray]:
    """The logits of every step."""
    tables, rng = scatter_blocks(steps), np.random.default_rng(0)
    found = {}
    for name, parts in steps.items():
        token_ids = rng.integers(0, runner.vocab_size, MAX_NUM_BATCHED_TOKENS, np.int32)
        found[name] = np.array(runner.execute(make_batch(parts, tables, token_ids)))
    return found


def main() -> None:
    """Write one file for each checkpoint and format."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wanted", nargs="+", metavar="FOLDER=FORMAT,FORMAT")
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    check_is_of_tree()
    rank = int(os.environ["RANK_ID"]) if arguments.ranks > 1 else 0
    steps = STEPS if arguments.ranks > 1 else STEPS | LONG_STEPS
    for wanted in arguments.wanted:
        folder, formats = wanted.rsplit("=", 1)
        for name in formats.split(","):
            with LLM(
                folder,
                device_target="CPU",
                model_parallel=arguments.ranks,
                num_threads=arguments.threads,
                max_num_seqs=MAX_NUM_SEQS,
                max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
                max_model_len=MAX_MODEL_LEN,
                block_size=BLOCK_SIZE,
                packed_cache="off",
                **FORMATS[name],
            ) as llm:
                logits = run_steps(find_runner(llm), steps)
            target = arguments.output / f"{Path(folder).name}-{name}-{rank}.npz"
            np.savez(target, **logits, isa=np.array(find_isa()))


if __name__ == "__main__":
    main()
