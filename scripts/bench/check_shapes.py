"""Load and run two layers of every released model's true shape.

    python scripts/bench/check_shapes.py --models chatglm2-6b glm-4-9b-chat

For each model: writes a slice with random weights (make_slice.py), loads it through MindSpore
Transformers' AutoModel, computes the logits of a prompt, answers it greedily, and removes the
slice. Prints a table; exit code 1 if logits are not finite or an answer is not complete. A slice
takes up to 6 GB on disk and as much memory.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import run_main
from make_slice import write_slice
from released_models import MODELS

import mindformers_glm  # noqa: F401  (registers the classes)
from mindformers_glm.engine.row_logits import compute_row_logits

_NUM_LAYERS, _PROMPT_TOKENS, _NEW_TOKENS = 2, 100, 8


def check(model: str, parent: Path) -> bool:
    """Run one model and print its row."""
    from mindformers import AutoModel

    with tempfile.TemporaryDirectory(dir=parent) as folder:
        write_slice(Path(folder), model, _NUM_LAYERS, seed=0)
        start = time.perf_counter()
        network = AutoModel.from_pretrained(folder, max_num_seqs=1, max_model_len=256)
        seconds = time.perf_counter() - start
        config = network.glm_config
        prompt = np.random.default_rng(0).integers(0, config.vocab_size, _PROMPT_TOKENS).tolist()
        answer = network.generate(
            prompt, do_sample=False, max_new_tokens=_NEW_TOKENS, ignore_eos=True
        )[0][_PROMPT_TOKENS:]
        logits = compute_row_logits(network.engine, prompt)
    is_good = bool(np.isfinite(logits).all()) and len(answer) == _NEW_TOKENS
    is_good &= int(logits[-1].argmax()) == int(answer[0])
    print(
        f"{model:<18}{type(network).__name__:<42}{config.num_attention_heads:>3}/"
        f"{config.num_key_value_heads:<3}{network.num_weight_bytes() / 2**30:6.2f} GiB"
        f"{seconds:7.1f} s  deviation of logits {logits.std():.3f}  {'ok' if is_good else 'WRONG'}",
        flush=True,
    )
    return is_good


def main() -> int:
    """Parse the command line, check each model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    print("model             network                                  heads/KV  weights   load")
    are_good = [check(model, arguments.folder) for model in arguments.models]
    return 0 if all(are_good) else 1


if __name__ == "__main__":
    run_main(main)
