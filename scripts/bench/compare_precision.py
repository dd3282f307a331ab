"""How far are bfloat16 and float16 from float32, here and in Hugging Face?

    python scripts/bench/compare_precision.py --models 40

For random models of weights that deviate by up to 0.3 (random_models.py): the relative L2 error of
a prompt's logits against Hugging Face in float32 on the same rounded weights, of this project and
of Hugging Face in the short type. Prints a row for each model and what they come to; exit code 1 if
this project is further away in more than one of twenty. `--rotary_dtype` rounds the rotary tables.
Needs torch and transformers (the `dev` extra).
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from machine import describe_machine, positive, run_main
from random_models import draw_prompt, read_vocab_size, write_random_model

from mindformers_glm import LLM

DIALECTS = ("glm4", "glm")  # Hugging Face runs no other; chatglm has the bits of glm
MOST_TOKENS = 200
_LEAST_SHARE = 0.95


def compute_theirs(folder: Path, token_ids: list[int], dtype: str) -> np.ndarray:
    """Logits of Hugging Face's own network, float32 [num_tokens, vocab_size]."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=getattr(torch, dtype)).eval()
    with torch.no_grad():
        return model(torch.tensor([token_ids])).logits[0].float().numpy()


def compute_ours(folder: Path, token_ids: list[int], rotary_dtype: str | None) -> np.ndarray:
    """The same of this project, in the type of the checkpoint."""
    with LLM(
        folder,
        device_target="CPU",
        rotary_dtype=rotary_dtype,
        max_num_seqs=1,
        max_model_len=MOST_TOKENS,
        packed_cache="off",
    ) as llm:
        return llm.logits(token_ids)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """L2 of the difference over L2 of the reference; infinite where a number is not finite."""
    error = np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected)
    return float(error) if np.isfinite(error) else float("inf")


def compare_model(seed: int, dtype: str, rotary_dtype: str | None = None) -> tuple[float, float]:
    """The errors of this project and of Hugging Face on one model; prints its row."""
    dialect = DIALECTS[seed % len(DIALECTS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        deviation = write_random_model(folder, dialect, dtype, seed)
        length = int(np.random.default_rng(seed).integers(8, MOST_TOKENS))
        prompt = draw_prompt(read_vocab_size(folder), length, seed)
        reference = compute_theirs(folder, prompt, "float32")
        theirs = relative_error(compute_theirs(folder, prompt, dtype), reference)
        ours = relative_error(compute_ours(folder, prompt, rotary_dtype), reference)
    print(
        f"{seed:>4} {dialect:<5} {dtype:<9} deviation {deviation:.2f} {length:>4} tokens   "
        f"ours {ours:.2e}   theirs {theirs:.2e}   ratio {ours / theirs:.2f}",
        flush=True,
    )
    return ours, theirs


def main() -> int:
    """Compare all models in both types."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=positive, default=40)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16"])
    parser.add_argument("--rotary_dtype", help="default: the project's")
    arguments = parser.parse_args()
    print(describe_machine())
    is_good = True
    for dtype in arguments.dtypes:
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.models)
        errors = np.array([compare_model(seed, dtype, arguments.rotary_dtype) for seed in seeds])
        ratios = errors[:, 0] / errors[:, 1]
        num_good = int((ratios <= 1).sum())
        is_good &= num_good >= _LEAST_SHARE * len(ratios)
        print(f"{dtype}: this project is no further away in {num_good} of {len(ratios)} models")
        for name, column in (("ours", errors[:, 0]), ("theirs", errors[:, 1]), ("ratio", ratios)):
            least, median, most = np.quantile(column, (0, 0.5, 1))
            print(f"  {name:<7} median {median:.2e}, {least:.2e} to {most:.2e}")
        above = (errors > 1e-2).sum(axis=0)
        print(f"  above 1e-2: ours {above[0]}, theirs {above[1]}")
    return 0 if is_good else 1


if __name__ == "__main__":
    run_main(main)
