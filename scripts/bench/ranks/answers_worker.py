"""Worker of compare_ranks.py: one rank that answers on every checkpoint in every format.

    answers_worker.py --ranks 2 --output DIR --formats w8a16 w4a16 -- FOLDER...

Writes DIR/NAME-FORMAT-RANK.npz: the logits of a prompt, and of each short prompt the greedy answer
with the logits of all its tokens. FORMAT "stored" is of folders that are quantized already.
"""

import argparse
import os
from pathlib import Path

import numpy as np

from mindformers_glm import LLM, SamplingParams

_LONG, _SHORT, _NEW_TOKENS = 37, (5, 12, 1), 12


def answer(llm: LLM) -> dict[str, np.ndarray]:
    """What the model says, by names."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, llm.config.vocab_size, size).tolist() for size in (_LONG, *_SHORT)]
    greedy = SamplingParams(do_sample=False, max_new_tokens=_NEW_TOKENS, ignore_eos=True)
    found = {"logits": llm.logits(prompts[0])}
    for number, (prompt, output) in enumerate(
        zip(prompts[1:], llm.generate(prompts[1:], greedy), strict=True)
    ):
        found[f"tokens {number}"] = np.array(output.token_ids)
        # Of the prompt's last token and of all but the last new one.
        logits = llm.logits([*prompt, *output.token_ids[:-1]])
        found[f"logits {number}"] = logits[len(prompt) - 1 :]
    return found


def main() -> None:
    """Write one file for each checkpoint and format."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--formats", nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rank = int(os.environ["RANK_ID"]) if arguments.ranks > 1 else 0
    for folder in arguments.folders:
        for name in arguments.formats:
            quantization, _, group_size = name.partition("/")
            with LLM(
                folder,
                device_target="CPU",
                model_parallel=arguments.ranks,
                params_dtype="float32",
                compute_dtype="float32",
                quantization=None if quantization == "stored" else quantization,
                quantization_group_size=int(group_size) if group_size else None,
                num_threads=1,
                max_num_seqs=4,
                max_num_batched_tokens=8,
                max_model_len=64,
                block_size=16,
                packed_cache="off",
            ) as llm:
                found = answer(llm)
            target = arguments.output / f"{folder.name}-{quantization}{group_size}-{rank}.npz"
            np.savez(target, **found)


if __name__ == "__main__":
    main()
