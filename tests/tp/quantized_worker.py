"""One rank that answers in several quantized formats.

quantized_worker.py SIZE FOLDER=FORMAT[,FORMAT...]...: writes FORMAT-SIZE-R.npz into the working
folder. With SIZE 1 it is the single process that the ranks are compared with. FORMAT "stored" means
that the folder is quantized already; the files have its name then, up to a "@".
kv-int8 is a KV cache of int8. With RANKS_APART in the environment each rank believes to be on a
host of its own.
"""

import os
import sys
from pathlib import Path

import numpy as np

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.backends.cpu import host_ranks
from mindformers_glm.backends.cpu.footprint import count_weight_bytes
from mindformers_glm.config.environment import launched_rank

PROMPT, NUM_TOKENS = list(range(5, 42)), 8
KV_INT8 = "kv-int8"
_GREEDY = SamplingParams(do_sample=False, max_new_tokens=NUM_TOKENS, ignore_eos=True)


def run(folder: Path, size: int, quantization: str) -> dict[str, np.ndarray]:
    """The logits of a prompt, the greedy answer to its end, and what the weights take."""
    is_stored = quantization == "stored"
    with LLM(
        folder,
        model_parallel=size,
        device_target="CPU",
        params_dtype="float32",
        compute_dtype="float32",
        quantization=None if is_stored or quantization == KV_INT8 else quantization,
        kv_cache_dtype="int8" if quantization == KV_INT8 else "auto",
        max_num_seqs=1,
        max_num_batched_tokens=8,
        max_model_len=64,
        num_threads=1,
        packed_cache="off",
    ) as llm:
        tokens = list(llm.generate(PROMPT[-5:], _GREEDY)[0].token_ids)
        return {
            "logits": llm.logits(PROMPT),
            "tokens": np.array(tokens),
            "next": llm.logits([*PROMPT[-5:], *tokens[:-1]])[4:],
            "is_shared": np.array(host_ranks.are_joined()),
            "weights_bytes": np.array(llm.weights_bytes),
            "planned_bytes": np.array(count_weight_bytes(llm.config, llm.settings)),
        }


if __name__ == "__main__":
    size = int(sys.argv[1])
    rank = launched_rank(size)
    if "RANKS_APART" in os.environ:
        os.environ["MS_NODE_RANK"] = str(rank)
    for wanted in sys.argv[2:]:
        folder, _, formats = wanted.rpartition("=")
        for name in formats.split(","):
            found = run(Path(folder), size, name)
            target = Path(folder).name.partition("@")[0] if name == "stored" else name
            np.savez(f"{target}-{size}-{rank}.npz", **found)
