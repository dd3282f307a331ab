"""How far apart are the logits of two instruction sets of the kernels?

    python scripts/bench/compare_isas.py --models 20 --formats w8a8_dynamic w4a8_dynamic

For random models (random_models.py): the relative L2 difference between a prompt's logits on each
instruction set that this machine has and on its best one. Prints for each format in how many models
every bit is the same, and the median and the largest difference.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from commits.bits_worker import FORMATS
from compare_precision import DIALECTS, relative_error
from machine import describe_machine, positive, run_main
from random_models import draw_prompt, read_vocab_size, write_random_model

from mindformers_glm import LLM
from mindformers_glm.backends.cpu import library

_TOKENS = 100


def compute_logits(seed: int, name: str) -> dict[str, np.ndarray]:
    """Logits of one model in one format on each instruction set, from one load."""
    best = library.isa()
    with tempfile.TemporaryDirectory() as folder:
        write_random_model(Path(folder), DIALECTS[seed % len(DIALECTS)], "bfloat16", seed)
        prompt = draw_prompt(read_vocab_size(Path(folder)), _TOKENS, seed)
        found = {}
        with LLM(
            folder,
            device_target="CPU",
            max_num_seqs=1,
            max_model_len=2 * _TOKENS,
            packed_cache="off",
            enable_prefix_caching=False,
            **FORMATS[name],
        ) as llm:
            try:
                for isa in library.available_isas():
                    library.select_isa(isa)
                    found[isa] = llm.logits(prompt)
            finally:
                library.select_isa(best)
    return found


def main() -> None:
    """Compare all models in each format."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=positive, default=20)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    arguments = parser.parse_args()
    print(describe_machine())
    best = library.isa()
    for name in arguments.formats:
        runs = [compute_logits(seed, name) for seed in range(arguments.models)]
        for isa in library.available_isas():
            errors = np.array([relative_error(run[isa], run[best]) for run in runs])
            same = sum(np.array_equal(run[isa], run[best]) for run in runs)
            print(
                f"{name:<13} {isa:<13} against {best}: same bits in {same} of {len(runs)}, "
                f"median {np.median(errors):.1e}, largest {errors.max():.1e}",
                flush=True,
            )


if __name__ == "__main__":
    run_main(main)
