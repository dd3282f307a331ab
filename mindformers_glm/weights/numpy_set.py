"""The ChatGLM2 guide's .npy files, laid over the float checkpoint that they were made of.

Each file is a dictionary by the names of layers. quant_weight.npy holds integers and the tensors
that stay float. Where a layer has a bias and there is no fp_bias.npy, the tool has saved the bias
in place of the layer's matrix, under the same name: such a matrix is the float checkpoint's. So
tensors get the names that the later layouts have, and replace those of the checkpoint.
Source: the files that msModelSlim 26.1.0 writes; fp_bias.npy by the guide's list of eight files.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import REPLACED
from mindformers_glm.weights.numpy_file import read_numpy_file
from mindformers_glm.weights.tensor_entry import TensorEntry

# What each file holds of a layer, by the names that the later layouts have for it.
_NEEDED = ("quant_weight", "input_scale", "input_offset", "quant_bias", "deq_scale")
_OF_WEIGHTS = ("weight_scale", "weight_offset")  # W8A8S has neither
_OTHERS = ("kv_cache_scale", "kv_cache_offset")
_NORMS = "anti_fp_norm"  # by their whole names
_BIASES = "fp_bias"
_ALL = (*_NEEDED, *_OF_WEIGHTS, *_OTHERS, _NORMS, _BIASES)
_FIRST_NORM = "input_layernorm.weight"


def has_numpy_set(folder: Path) -> bool:
    """Whether a folder holds files of the set, and none of msModelSlim's later layouts."""
    is_there = any((folder / f"{stem}.npy").is_file() for stem in _ALL)
    return is_there and not any(folder.glob("quant_model_*"))


def read_numpy_set(folder: Path) -> list[TensorEntry]:
    """List the tensors of the set by the names that the later layouts have.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    there = {stem: folder / f"{stem}.npy" for stem in _ALL if (folder / f"{stem}.npy").is_file()}
    is_sparse = not set(_OF_WEIGHTS) & set(there)
    for stem in (*_NEEDED, *(() if is_sparse else _OF_WEIGHTS)):
        if stem not in there:
            raise CheckpointError(f"{folder} lacks {stem}.npy: copy all of its .npy files.")
    entries = []
    for stem, path in there.items():
        for entry in read_numpy_file(path):
            entries.append(replace(entry, name=_name(stem, entry)))
    return entries


def _name(stem: str, entry: TensorEntry) -> str:
    if stem == _NORMS:
        return entry.name
    if stem == "quant_weight":
        return f"{entry.name}.{'bias' if len(entry.shape) == 1 else 'weight'}"
    return f"{entry.name}.{'bias' if stem == _BIASES else stem}"


def lay_over(
    entries: Mapping[str, TensorEntry], found: list[TensorEntry]
) -> dict[str, TensorEntry]:
    """A float checkpoint's tensors with those of the set in their places.

    A norm whose old weight tells what anti-outlier has done to a lost matrix keeps that as well,
    under its name and `REPLACED`.

    Raises:
        CheckpointError: two files of the set hold the same tensor.
    """
    of_set: dict[str, TensorEntry] = {}
    for entry in found:
        if entry.name in of_set:
            raise CheckpointError(
                f"{entry.name} is in both {of_set[entry.name].file} and {entry.file}: remove the "
                "file that is of another tool's version."
            )
        of_set[entry.name] = entry
    replaced = {}
    for layer in lost_layers(of_set):
        norm = f"{layer.rsplit('.', 2)[0]}.{_FIRST_NORM}"
        if norm in entries and norm in of_set:
            replaced[norm + REPLACED] = replace(entries[norm], name=norm + REPLACED)
    return dict(entries) | of_set | replaced


def lost_layers(of_set: Mapping[str, TensorEntry]) -> list[str]:
    """The layers whose matrix the tool has not saved."""
    layers = [name.removesuffix(".deq_scale") for name in of_set if name.endswith(".deq_scale")]
    return [layer for layer in layers if f"{layer}.weight" not in of_set]
