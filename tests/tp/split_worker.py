"""One rank of a split model: everything that needs a start of its own, in one.

split_worker.py SIZE FOLDER...: writes FOLDER's name, rank-R.json and .npz into the working folder.
With SIZE 1 it is the single process that the ranks are compared with.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.config.environment import launched_rank
from mindformers_glm.core.errors import ConfigError

PROMPTS = ["hello", "a longer prompt than the others", "请介绍一下北京", "hello hello hello hello"]
_GREEDY = SamplingParams(do_sample=False, max_new_tokens=12, ignore_eos=True)
_SAMPLED = SamplingParams(
    do_sample=True, temperature=0.9, top_k=0, top_p=0.9, max_new_tokens=12, ignore_eos=True
)
_FORMED = SamplingParams(
    structured_outputs={
        "json": {
            "type": "object",
            "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "maximum": 999}},
            "required": ["ok", "n"],
        }
    },
    n=2,
    do_sample=True,
    max_tokens=50,
    ignore_eos=True,
)
_TOLD = SamplingParams(
    do_sample=True,
    n=2,
    max_tokens=6,
    seed=3,
    presence_penalty=1.0,
    frequency_penalty=0.5,
    logit_bias={7: 2.0},
    bad_words=["a"],
    logprobs=1,
    prompt_logprobs=1,
)


def tell_samples(llm: LLM) -> list[list[list[int]]]:
    """Tokens of two answers to each prompt, and of what is said to be likely, prompts included."""
    outputs = llm.generate(PROMPTS, _TOLD)
    entries = [
        entry
        for output in outputs
        for entry in (output.prompt_logprobs or [])[1:] + (output.samples[1].logprobs or [])
        if entry is not None
    ]
    return [
        [completion.token_ids for output in outputs for completion in output.outputs],
        [list(entry) for entry in entries],
    ]


def tell_formed(llm: LLM) -> list[list[int]]:
    """Tokens of answers that must be JSON, guessed ahead and in batches."""
    if find_spec("llguidance") is None:
        return []
    outputs = llm.generate(PROMPTS, _FORMED)
    assert not any(output.error for output in outputs), outputs[0].error
    return [completion.token_ids for output in outputs for completion in output.outputs]


def tell_differences(llm: LLM, folder: Path, size: int, rank: int) -> list[str]:
    """What a rank is told that is asked, or opens the folder, otherwise than the first."""
    told = []
    for attempt in (
        lambda: llm.generate([5 + rank], _GREEDY),
        lambda: LLM(folder, model_parallel=size, seed=rank, device_target="CPU"),
    ):
        try:
            attempt()
        except ConfigError as problem:
            told.append(str(problem))
    return told


def run(folder: Path, size: int, rank: int) -> tuple[dict[str, object], np.ndarray]:
    """What this rank sees: tokens and sizes, and the logits of a prompt longer than a step."""
    with LLM(
        folder,
        model_parallel=size,
        device_target="CPU",
        params_dtype="float32",
        compute_dtype="float32",
        max_num_seqs=3,
        max_num_batched_tokens=8,
        max_model_len=128,
        block_size=16,
        num_threads=1,
        seed=7,
        packed_cache="off",
    ) as llm:
        tokens = {
            "single": [llm.generate(prompt, _GREEDY)[0].token_ids for prompt in PROMPTS[:1]],
            "batch": [output.token_ids for output in llm.generate(PROMPTS, _GREEDY)],
            "sampled": [output.token_ids for output in llm.generate(PROMPTS, _SAMPLED)],
            "samples": tell_samples(llm),
            "formed": tell_formed(llm),
        }
        runner = llm.engine.runner
        told = tell_differences(llm, folder, size, rank) if size > 1 else []
        numbers = {
            "weights_bytes": llm.weights_bytes,
            "kv_block_bytes": runner.kv_block_bytes,
            "num_blocks": llm.engine.config.num_blocks,
            "read_weight_bytes": runner.read_weight_bytes,
        }
        token_ids = np.random.default_rng(0).integers(0, llm.config.vocab_size, 41).tolist()
        return {"tokens": tokens, "told": told} | numbers, llm.logits(token_ids)


if __name__ == "__main__":
    size = int(sys.argv[1])
    rank = launched_rank(size)
    for name in sys.argv[2:]:
        folder = Path(name)
        found, logits = run(folder, size, rank)
        target = Path(f"{folder.name}-{size}-{rank}.json")
        np.save(target.with_suffix(".npy"), logits)
        target.write_text(json.dumps(found))
