"""Find the weight files of a checkpoint folder: by its index, else by their names."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mindformers_glm.config.adapter import is_adapter_file, refuse_adapter_alone
from mindformers_glm.config.glm_config import QUANTIZED_HINT
from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.system.files import read_json_object
from mindformers_glm.weights.pytorch_file import read_pytorch_file
from mindformers_glm.weights.safetensors_header import read_header
from mindformers_glm.weights.tensor_entry import TensorEntry

# Old AutoGPTQ and AutoAWQ, whose weights may be gptq_model-4bit-128g.bin or a .pt.
_QUANTIZER_FILES = ("quantize_config.json", "quant_config.json")
_SHARD_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5}\.\w+)", re.ASCII)
_MAX_NAME_BYTES = 255  # of a file, to the system


@dataclass(frozen=True)
class WeightFormat:
    """How weights are kept in files.

    single_file: the name of weights that are not sharded; pattern: of weights without an index.
    read: lists the tensors of one file.
    """

    name: str
    single_file: str
    pattern: str
    index_pattern: str
    read: Callable[[Path], list[TensorEntry]]


# In the order of preference: a folder that has both kinds has them twice. msModelSlim's files may
# lie beside the float ones that they were made of.
WEIGHT_FORMATS = (
    WeightFormat(
        "safetensors",
        "quant_model_weights.safetensors",
        "quant_model_weight*.safetensors",
        "quant_model_weight*.safetensors.index.json",
        read_header,
    ),
    WeightFormat(
        "safetensors", "model.safetensors", "*.safetensors", "*.safetensors.index.json", read_header
    ),
    # A training folder also holds optimizer.bin, training_args.bin and the like.
    WeightFormat(
        "PyTorch",
        "pytorch_model.bin",
        "pytorch_model*.bin",
        "pytorch_model*.bin.index.json",
        read_pytorch_file,
    ),
)


@dataclass(frozen=True)
class Shards:
    """The weight files of a folder, sorted.

    weight_map: the index's tensor name -> file; None without an index.
    """

    format: WeightFormat
    files: list[Path]
    weight_map: dict[str, Path] | None

    def check_index(self, folder: Path, entries: Mapping[str, TensorEntry]) -> None:
        """Compare what the index of `folder` says with what the shards hold.

        Raises:
            CheckpointError: a tensor is not where the index says, or the index does not name it.
        """
        if self.weight_map is None:
            return
        for name, file in self.weight_map.items():
            if name not in entries or entries[name].file != file:
                raise CheckpointError(
                    f"The index in {folder} says that {file.name} holds {name!r}, but it does not: "
                    "index and shards are not of one model, download both again."
                )
        for name, entry in entries.items():
            if name not in self.weight_map:
                raise CheckpointError(
                    f"{entry.file} holds {name!r}, which the index in {folder} does not name: "
                    "index and shards are not of one model, download both again."
                )


def single_file(file: Path) -> Shards:
    """One safetensors file, whatever its name."""
    return Shards(WEIGHT_FORMATS[0], [file], None)


def no_shards() -> Shards:
    """Of a folder whose weights are in other files."""
    return Shards(WEIGHT_FORMATS[0], [], None)


def has_shards(folder: Path) -> bool:
    """Whether there are weight files, whole or not."""
    return any(
        list_files(folder, pattern)
        for kind in WEIGHT_FORMATS
        for pattern in (kind.pattern, kind.index_pattern)
    )


def find_shards(folder: Path) -> Shards:
    """Find the files, of the first format of which there are any.

    Raises:
        UnsupportedError: an adapter alone, or weights in the file format of a quantizing tool.
        CheckpointError: no weights, an index that is broken or names missing files, a missing
            shard, or several candidates of which none is clearly meant.
    """
    for kind in WEIGHT_FORMATS:
        if list_files(folder, kind.pattern) or list_files(folder, kind.index_pattern):
            return _find_shards_of(kind, folder)
    refuse_adapter_alone(folder)
    if any((folder / name).exists() for name in _QUANTIZER_FILES):
        raise UnsupportedError(f"{folder} is of a quantizing tool, but {QUANTIZED_HINT}.")
    if compressed := sorted(folder.glob("part*-of-*")):
        raise UnsupportedError(
            f"{folder} holds parts for ranks ({compressed[0].name}), W8A8SC, which is compressed "
            "for one kind of card in a format that is not public: take the W8A8S folder that it "
            "was made of."
        )
    if gguf := sorted(folder.glob("*.gguf")):
        raise UnsupportedError(
            f"{folder} holds GGUF ({gguf[0].name}), which is not supported: download the "
            "safetensors repository that it was converted from (the setting quantization can "
            "quantize it), or run the file with llama.cpp."
        )
    raise CheckpointError(
        f"{folder} holds no *.safetensors and no pytorch_model*.bin: download the model's weights "
        "into it (without Git-LFS a clone leaves them out)."
    )


def _find_shards_of(kind: WeightFormat, folder: Path) -> Shards:
    indexes = list_files(folder, kind.index_pattern)
    if len(indexes) > 1:
        raise CheckpointError(
            f"{folder} has several indexes ({', '.join(index.name for index in indexes)}): "
            "keep one model in the folder."
        )
    if not indexes:
        return Shards(kind, _find_without_index(kind, folder), None)
    weight_map = _read_index(indexes[0])
    files = sorted(set(weight_map.values()))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{indexes[0]} names {list_names(missing)}, which the folder does not hold: "
            "download the missing files."
        )
    single = folder / kind.single_file
    if single.exists() and single not in files:
        # Hugging Face would silently take the single file.
        raise CheckpointError(
            f"{folder} holds both {kind.single_file} and {indexes[0].name}: remove the one that "
            "is old."
        )
    return Shards(kind, files, weight_map)


def _find_without_index(kind: WeightFormat, folder: Path) -> list[Path]:
    single = folder / kind.single_file
    files = [single] if single.exists() else list_files(folder, kind.pattern)
    series: dict[tuple[str, str], set[int]] = {}
    for file in files:
        if match := _SHARD_NAME.fullmatch(file.name):
            series.setdefault((match[1], match[3]), set()).add(int(match[2]))
    for (stem, end), numbers in series.items():
        missing = [
            f"{stem}-{number:05d}-of-{end}"
            for number in range(1, int(end[:5]) + 1)
            if number not in numbers
        ]
        if not missing:
            continue
        raise CheckpointError(
            f"{folder} lacks {list_names(missing)}: download the missing files "
            f"(and {kind.single_file}.index.json)."
        )
    return files


def _read_index(path: Path) -> dict[str, Path]:
    weight_map = read_json_object(path, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no 'weight_map': download the index again.")
    for name, file in weight_map.items():
        if not _is_file_name(file):
            raise CheckpointError(
                f"{path} says that {name!r} is in {file!r}, which is not a file name: "
                "download the index again."
            )
    return {name: path.parent / file for name, file in weight_map.items()}


def _is_file_name(name: Any) -> bool:
    """Whether it is a plain name: an index must not lead out of its folder."""
    return (
        isinstance(name, str)
        and name.isprintable()
        and name not in ("", ".", "..")
        and not {"/", "\\"} & set(name)
        and len(name.encode()) <= _MAX_NAME_BYTES
    )


def list_names(names: list[str]) -> str:
    """The first five of them, and how many more there are."""
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def list_files(folder: Path, pattern: str) -> list[Path]:
    """The files of a folder that match, sorted; none of an adapter."""
    return sorted(path for path in folder.glob(pattern) if not is_adapter_file(path))
