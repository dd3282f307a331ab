"""Write a random-weight checkpoint of true layer shape with few layers.

    python scripts/bench/make_slice.py --model 9b --num_layers 4 --output /tmp/glm4_9b_slice4
    python scripts/bench/make_slice.py --model 9b --num_layers 2 --output /tmp/awq --quantized awq

The folder has config.json, generation_config.json and one safetensors file in bfloat16, with the
names and keys of the model's own repository (scripts/bench/released_models.py); a tokenizer
can be copied beside them (`--tokenizer DIR`). Weights are normal with a deviation of 0.02 as
Hugging Face initializes them, norm weights are near one. With `--quantized FORMAT` linear layers
of the decoder are as a tool would have stored them (quantized_slices.py), the rest is the same.
Nothing is in memory at once that is larger than a few rows.
"""

import argparse
import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from machine import positive, run_main
from quantized_slices import FORMS, Form, Part, describe
from released_models import MODELS

from mindformers_glm.config.glm_config import DIALECTS, GlmConfig
from mindformers_glm.system.progress import Progress
from mindformers_glm.weights.rules import build_rules
from mindformers_glm.weights.tensor_names import LINEARS

_WEIGHT_DEVIATION = 0.02
_ROWS_AT_A_TIME = 8192
_BYTES_AT_A_TIME = 2**24
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "F8_E4M3": 1}
# Truncation to bfloat16 is as random as the values are.
_STORED_AS: dict[str, tuple[str, int, Callable[[np.ndarray], np.ndarray]]] = {
    "float32": ("F32", 4, lambda values: values),
    "float16": ("F16", 2, lambda values: values.astype(np.float16)),
    "bfloat16": ("BF16", 2, lambda values: (values.view(np.uint32) >> 16).astype(np.uint16)),
}


def write_slice(
    folder: Path, model: str, num_layers: int, seed: int, quantized: str | None = None
) -> None:
    """Write config.json, generation_config.json and the weights into `folder`.

    Args:
        quantized: a name of FORMS; None: weights are bfloat16.
    """
    keys = MODELS[model] | {"torch_dtype": "bfloat16"}
    names = DIALECTS[keys["model_type"]].key_names
    # New ChatGLM folders say it twice.
    for key in {names.get("num_hidden_layers"), "num_hidden_layers"} & keys.keys():
        keys[key] = num_layers
    form = None if quantized is None else FORMS[quantized]
    write_random_checkpoint(folder, model, keys, _WEIGHT_DEVIATION, seed, form)


def write_random_checkpoint(
    folder: Path,
    name: str,
    keys: dict[str, Any],
    deviation: float,
    seed: int,
    form: Form | None = None,
) -> None:
    """The same for any config.json, in the type that it names; `name` is for messages."""
    config = GlmConfig.from_dict(keys, source=name)
    rng = np.random.default_rng(seed)
    parts = dict(_list_parts(config, keys["torch_dtype"], form, rng))
    folder.mkdir(parents=True, exist_ok=True)
    all_keys = keys | ({} if form is None else dict(form.keys))
    (folder / "config.json").write_text(json.dumps(all_keys, indent=2))
    generation = {"do_sample": False, "eos_token_id": keys["eos_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))
    file_name = "model.safetensors"
    if form is not None and form.kind is not None:
        layers = {name.rpartition(".")[0] for name in parts if name.endswith("_scale")}
        described = describe(form, parts, layers)
        (folder / "quant_model_description.json").write_text(json.dumps(described))
        file_name = f"quant_model_weight_{form.kind.lower()}.safetensors"
    unfinished = folder / f"{file_name}.tmp"
    _write_safetensors(unfinished, parts, deviation, rng)
    unfinished.rename(folder / file_name)


def _list_parts(
    config: GlmConfig, dtype: str, form: Form | None, rng: np.random.Generator
) -> Iterator[tuple[str, Part]]:
    """The tensors of a folder by name, in their order; those of type `dtype` are floats."""
    dtype_name = _STORED_AS[dtype][0]
    done = set()
    for rule in build_rules(config):
        for source in rule.sources:
            if source.name in done:
                continue
            done.add(source.name)
            if form is not None and rule.parameter.endswith(LINEARS):
                rows, columns = source.shape
                layer = source.name.removesuffix(".weight")
                for end, part in form.make(rng, rows, columns).items():
                    yield f"{layer}.{end}", part
            else:
                yield source.name, Part(dtype_name, source.shape, is_float=True)


def _write_safetensors(
    path: Path, parts: dict[str, Part], deviation: float, rng: np.random.Generator
) -> None:
    header, end = {}, 0
    for name, part in parts.items():
        begin, end = end, end + _ITEM_BYTES[part.dtype] * math.prod(part.shape)
        header[name] = {"dtype": part.dtype, "shape": part.shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    with path.open("wb") as file, Progress("Writing weights", end, "B") as bar:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, part in parts.items():
            if part.values is not None:
                file.write(part.values.tobytes())
            elif part.is_float:
                _write_floats(file, name, part, deviation, rng)
            else:
                _write_bytes(file, part, rng)
            bar.advance(_ITEM_BYTES[part.dtype] * math.prod(part.shape))


def _write_floats(
    file: BinaryIO, name: str, part: Part, deviation: float, rng: np.random.Generator
) -> None:
    _, _, encode = next(found for found in _STORED_AS.values() if found[0] == part.dtype)
    for start in range(0, part.shape[0], _ROWS_AT_A_TIME):
        rows = min(_ROWS_AT_A_TIME, part.shape[0] - start)
        values = rng.standard_normal((rows, *part.shape[1:]), np.float32)
        values *= np.float32(deviation)
        if "norm" in name:
            values += 1
        file.write(encode(values).tobytes())


def _write_bytes(file: BinaryIO, part: Part, rng: np.random.Generator) -> None:
    left = _ITEM_BYTES[part.dtype] * math.prod(part.shape)
    while left:
        octets = np.frombuffer(rng.bytes(min(left, _BYTES_AT_A_TIME)), np.uint8)
        file.write((octets if part.mend is None else part.mend(octets)).tobytes())
        left -= len(octets)


def main() -> int:
    """Parse the command line and write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--num_layers", type=positive, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--quantized", choices=FORMS, help="format of the linear layers")
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json to copy")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    tokenizer_files = (
        list(arguments.tokenizer.glob("tokenizer*.json")) if arguments.tokenizer else []
    )
    if arguments.tokenizer and not tokenizer_files:
        parser.error(f"there is no tokenizer.json in {arguments.tokenizer}")
    if arguments.quantized is not None:
        models = FORMS[arguments.quantized].models
        if models and MODELS[arguments.model]["model_type"] not in models:
            parser.error(f"{arguments.quantized} is a format of {', '.join(models)} only")
    write_slice(
        arguments.output,
        arguments.model,
        arguments.num_layers,
        arguments.seed,
        arguments.quantized,
    )
    for path in tokenizer_files:
        shutil.copy(path, arguments.output)
    return 0


if __name__ == "__main__":
    run_main(main)
