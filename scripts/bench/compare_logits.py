"""Compare this project's logits on a checkpoint with Hugging Face's, and say what memory it took.

    python scripts/bench/compare_logits.py --checkpoint /tmp/glm4_9b_slice4

Prints the relative L2 error against Hugging Face in float32 on the same (rounded) weights, of this
project and of Hugging Face in bfloat16, and the peak memory of this project beside its weights and
KV cache. Each of the three runs in a process of its own. Exit code 1 if a bound is broken:
error at most 1e-2 and 1.2 times Hugging Face's own bfloat16 error, peak below weights + KV + 1 GB.
Needs torch and transformers (the `dev` extra).
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

MAX_ERROR = 1e-2
MAX_ERROR_RATIO = 1.2
MAX_OVERHEAD_BYTES = 2**30


def run_ours(folder: str, token_ids: list[int], output: Path) -> None:
    """Save the logits, print weights, KV and peak bytes as JSON."""
    from mindformers_glm import LLM

    with LLM(folder, max_num_seqs=1, max_model_len=1024) as llm:
        np.save(output, llm.logits(token_ids))
        memory = {"weights": llm.weights_bytes, "kv": llm.kv_cache_bytes}
    memory["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps(memory))


def run_hugging_face(folder: str, token_ids: list[int], output: Path, dtype: str) -> None:
    """Save the logits of transformers' own network in `dtype`."""
    import torch
    from transformers import Glm4ForCausalLM

    model = Glm4ForCausalLM.from_pretrained(folder, torch_dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        np.save(output, model(torch.tensor([token_ids])).logits[0].float().numpy())


_RUNS = {
    "ours": run_ours,
    "hf_float32": lambda *args: run_hugging_face(*args, "float32"),
    "hf_bfloat16": lambda *args: run_hugging_face(*args, "bfloat16"),
}


def main() -> int:
    """Run all three, print the table, return 1 if a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--num_tokens", type=int, default=100)
    parser.add_argument(
        "--our_python",
        default=sys.executable,
        help="interpreter of our run; one without torch, which transformers would import, "
        "shows what users see (170 MB less)",
    )
    parser.add_argument("--run", choices=_RUNS, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    vocab_size = json.loads(Path(arguments.checkpoint, "config.json").read_text())["vocab_size"]
    token_ids = np.random.default_rng(0).integers(0, vocab_size, arguments.num_tokens).tolist()
    if arguments.run:
        _RUNS[arguments.run](arguments.checkpoint, token_ids, arguments.output)
        return 0

    with tempfile.TemporaryDirectory() as folder:
        logits, memory = {}, {}
        for name in _RUNS:
            path = Path(folder, f"{name}.npy")
            command = [
                sys.executable,
                __file__,
                *sys.argv[1:],
                "--run",
                name,
                "--output",
                str(path),
            ]
            finished = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            logits[name] = np.load(path)
            if name == "ours":
                memory = json.loads(finished.stdout.splitlines()[-1])
    reference = logits["hf_float32"]
    errors = {
        name: float(np.linalg.norm(found - reference) / np.linalg.norm(reference))
        for name, found in logits.items()
    }
    ratio = errors["ours"] / errors["hf_bfloat16"]
    overhead = memory["peak"] - memory["weights"] - memory["kv"]
    print(f"checkpoint {arguments.checkpoint}, {arguments.num_tokens} tokens")
    print(f"relative error   ours {errors['ours']:.2e}   hf bfloat16 {errors['hf_bfloat16']:.2e}")
    print(f"ratio            {ratio:.2f} (bound {MAX_ERROR_RATIO})")
    weights, kv, peak = (memory[name] / 2**30 for name in ("weights", "kv", "peak"))
    print(
        f"memory           weights {weights:.2f} GB, KV {kv:.3f} GB, peak {peak:.2f} GB: "
        f"{overhead / 2**30:.2f} GB above both (bound 1)"
    )
    is_good = (
        errors["ours"] <= MAX_ERROR and ratio <= MAX_ERROR_RATIO and overhead <= MAX_OVERHEAD_BYTES
    )
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
