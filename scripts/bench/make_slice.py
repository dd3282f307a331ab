"""Write a random-weight checkpoint of true GLM-4-0414 layer shape with few layers.

    python scripts/bench/make_slice.py --model 9b --num_layers 4 --output /tmp/glm4_9b_slice4

The folder has config.json, generation_config.json and one safetensors file in bfloat16; a tokenizer
can be copied beside them (`--tokenizer DIR`). Weights are normal with a deviation of 0.02 as
Hugging Face initializes them, norm weights are near one.
"""

import argparse
import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.progress import Progress
from mindformers_glm.weights.rules import build_rules

# GLM-4-9B-0414 and GLM-4-32B-0414, from their config.json.
_COMMON = {
    "architectures": ["Glm4ForCausalLM"],
    "model_type": "glm4",
    "head_dim": 128,
    "hidden_act": "silu",
    "vocab_size": 151552,
    "max_position_embeddings": 32768,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "eos_token_id": [151329, 151336, 151338],
    "pad_token_id": 151329,
}
MODELS = {
    "9b": {
        "hidden_size": 4096,
        "intermediate_size": 13696,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "attention_bias": True,
    },
    "32b": {
        "hidden_size": 6144,
        "intermediate_size": 23040,
        "num_hidden_layers": 61,
        "num_attention_heads": 48,
        "attention_bias": False,
    },
}
_WEIGHT_DEVIATION = 0.02
_ROWS_AT_A_TIME = 8192


def write_slice(folder: Path, model: str, num_layers: int, seed: int) -> None:
    """Write config.json, generation_config.json and model.safetensors into `folder`."""
    keys = _COMMON | MODELS[model] | {"num_hidden_layers": num_layers}
    config = GlmConfig.from_dict(keys, source=model)
    shapes = {source.name: source.shape for rule in build_rules(config) for source in rule.sources}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(keys, indent=2))
    generation = {"do_sample": False, "eos_token_id": keys["eos_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))
    unfinished = folder / "model.safetensors.tmp"
    _write_safetensors(unfinished, shapes, np.random.default_rng(seed))
    unfinished.rename(folder / "model.safetensors")


def _write_safetensors(
    path: Path, shapes: dict[str, tuple[int, ...]], rng: np.random.Generator
) -> None:
    header, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file, Progress("Writing weights", end, "B") as bar:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, shape in shapes.items():
            for start in range(0, shape[0], _ROWS_AT_A_TIME):
                rows = min(_ROWS_AT_A_TIME, shape[0] - start)
                values = rng.standard_normal((rows, *shape[1:]), np.float32)
                values *= np.float32(_WEIGHT_DEVIATION)
                if "norm" in name:
                    values += 1
                # Truncation to bfloat16 is as random as the values are.
                file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
                bar.advance(2 * values.size)


def main() -> int:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--num_layers", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json to copy")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_slice(arguments.output, arguments.model, arguments.num_layers, arguments.seed)
    if arguments.tokenizer:
        for path in arguments.tokenizer.glob("tokenizer*.json"):
            shutil.copy(path, arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
