"""Find the safetensors files of a checkpoint folder: by its index, else by their names."""

import re
from pathlib import Path

from mindformers_glm.config.files import read_json_object
from mindformers_glm.core.errors import CheckpointError

_SINGLE_FILE = "model.safetensors"
_SHARD_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")


def find_shards(folder: Path) -> tuple[list[Path], dict[str, Path] | None]:
    """Return the files, sorted, and the index's tensor name -> file (None without an index).

    Raises:
        CheckpointError: no safetensors, an index that is broken or names missing files, a missing
            shard, or several candidates of which none is clearly meant.
    """
    indexes = sorted(folder.glob("*.safetensors.index.json"))
    if len(indexes) > 1:
        raise CheckpointError(
            f"{folder} has several indexes ({', '.join(index.name for index in indexes)}): "
            "keep one model in the folder."
        )
    if not indexes:
        return _find_without_index(folder), None
    weight_map = _read_index(indexes[0])
    files = sorted(set(weight_map.values()))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{indexes[0]} names {_list_names(missing)}, which the folder does not hold: "
            "download the missing files."
        )
    single = folder / _SINGLE_FILE
    if single.exists() and single not in files:
        # Hugging Face would silently take the single file.
        raise CheckpointError(
            f"{folder} holds both {_SINGLE_FILE} and {indexes[0].name}: remove the one that is old."
        )
    return files, weight_map


def _find_without_index(folder: Path) -> list[Path]:
    single = folder / _SINGLE_FILE
    files = [single] if single.exists() else sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError(_no_weights_message(folder))
    present = {file.name for file in files}
    expected = set()
    for file in files:
        if match := _SHARD_NAME.fullmatch(file.name):
            stem, count = match[1], match[3]
            expected |= {
                f"{stem}-{number:05d}-of-{count}.safetensors" for number in range(1, int(count) + 1)
            }
    if missing := sorted(expected - present):
        raise CheckpointError(
            f"{folder} lacks {_list_names(missing)}: download the missing files "
            f"(and {_SINGLE_FILE}.index.json)."
        )
    return files


def _no_weights_message(folder: Path) -> str:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
        return (
            f"{folder} holds PyTorch weights (.bin) only: download the model's .safetensors files, "
            "or convert it with Hugging Face's save_pretrained(..., safe_serialization=True)."
        )
    return (
        f"{folder} holds no *.safetensors: download the model's weights into it "
        "(without Git-LFS a clone leaves them out)."
    )


def _read_index(path: Path) -> dict[str, Path]:
    weight_map = read_json_object(path, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no 'weight_map': download the index again.")
    for name, file in weight_map.items():
        # A plain file name: an index must not lead out of its folder.
        if not isinstance(file, str) or file in ("", ".", "..") or "/" in file or "\\" in file:
            raise CheckpointError(
                f"{path} says that {name!r} is in {file!r}, which is not a file name: "
                "download the index again."
            )
    return {name: path.parent / file for name, file in weight_map.items()}


def _list_names(names: list[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
