"""Write a random-weight checkpoint of true layer shape with few layers.

    python scripts/bench/make_slice.py --model 9b --num_layers 4 --output /tmp/glm4_9b_slice4

The folder has config.json, generation_config.json and one safetensors file in bfloat16, with the
names and keys of the model's own repository (scripts/bench/released_models.py); a tokenizer
can be copied beside them (`--tokenizer DIR`). Weights are normal with a deviation of 0.02 as
Hugging Face initializes them, norm weights are near one.
"""

import argparse
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import positive, run_main
from released_models import MODELS

from mindformers_glm.config.glm_config import DIALECTS, GlmConfig
from mindformers_glm.system.progress import Progress
from mindformers_glm.weights.rules import build_rules

_WEIGHT_DEVIATION = 0.02
_ROWS_AT_A_TIME = 8192
# Truncation to bfloat16 is as random as the values are.
_STORED_AS: dict[str, tuple[str, int, Callable[[np.ndarray], np.ndarray]]] = {
    "float32": ("F32", 4, lambda values: values),
    "float16": ("F16", 2, lambda values: values.astype(np.float16)),
    "bfloat16": ("BF16", 2, lambda values: (values.view(np.uint32) >> 16).astype(np.uint16)),
}


def write_slice(folder: Path, model: str, num_layers: int, seed: int) -> None:
    """Write config.json, generation_config.json and model.safetensors into `folder`."""
    keys = MODELS[model] | {"torch_dtype": "bfloat16"}
    names = DIALECTS[keys["model_type"]].key_names
    # New ChatGLM folders say it twice.
    for key in {names.get("num_hidden_layers"), "num_hidden_layers"} & keys.keys():
        keys[key] = num_layers
    write_random_checkpoint(folder, model, keys, _WEIGHT_DEVIATION, seed)


def write_random_checkpoint(
    folder: Path, name: str, keys: dict[str, Any], deviation: float, seed: int
) -> None:
    """The same for any config.json, in the type that it names; `name` is for messages."""
    config = GlmConfig.from_dict(keys, source=name)
    shapes = {source.name: source.shape for rule in build_rules(config) for source in rule.sources}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(keys, indent=2))
    generation = {"do_sample": False, "eos_token_id": keys["eos_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))
    unfinished = folder / "model.safetensors.tmp"
    rng = np.random.default_rng(seed)
    _write_safetensors(unfinished, shapes, keys["torch_dtype"], deviation, rng)
    unfinished.rename(folder / "model.safetensors")


def _write_safetensors(
    path: Path,
    shapes: dict[str, tuple[int, ...]],
    dtype: str,
    deviation: float,
    rng: np.random.Generator,
) -> None:
    dtype_name, item_bytes, encode = _STORED_AS[dtype]
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + item_bytes * int(np.prod(shape))
        header[name] = {"dtype": dtype_name, "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file, Progress("Writing weights", end, "B") as bar:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, shape in shapes.items():
            for start in range(0, shape[0], _ROWS_AT_A_TIME):
                rows = min(_ROWS_AT_A_TIME, shape[0] - start)
                values = rng.standard_normal((rows, *shape[1:]), np.float32)
                values *= np.float32(deviation)
                if "norm" in name:
                    values += 1
                file.write(encode(values).tobytes())
                bar.advance(item_bytes * values.size)


def main() -> int:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--num_layers", type=positive, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json to copy")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer_files = (
        list(arguments.tokenizer.glob("tokenizer*.json")) if arguments.tokenizer else []
    )
    if arguments.tokenizer and not tokenizer_files:
        parser.error(f"there is no tokenizer.json in {arguments.tokenizer}")
    write_slice(arguments.output, arguments.model, arguments.num_layers, arguments.seed)
    for path in tokenizer_files:
        shutil.copy(path, arguments.output)
    return 0


if __name__ == "__main__":
    run_main(main)
