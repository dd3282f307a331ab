"""Adapters (LoRA and the like) that PEFT or MLX left in a folder: named, never applied."""

import re
from pathlib import Path

from mindformers_glm.core.errors import ConfigError, UnsupportedError
from mindformers_glm.system.files import read_json_object

ADAPTER_CONFIG = "adapter_config.json"
# adapter_model.safetensors (PEFT), with shards and an index; adapters.safetensors,
# 0000100_adapters.safetensors (MLX).
_WEIGHTS = re.compile(r"(.*_)?adapters?(_model.*)?\.(safetensors|bin)(\.index\.json)?")


def is_adapter_file(path: Path) -> bool:
    """Whether a weight file or an index belongs to an adapter and not to the model."""
    return _WEIGHTS.fullmatch(path.name) is not None


def find_adapter(folder: Path) -> str | None:
    """Say what kind of adapter's weights lie in a folder, for people; None: there are none."""
    files = sorted(path.name for path in folder.iterdir() if is_adapter_file(path))
    return f"{_kind(folder)} ({files[0]})" if files else None


def refuse_adapter_alone(folder: Path) -> None:
    """Refuse a folder without a model if it holds an adapter.

    Raises:
        UnsupportedError: it does.
    """
    if not (folder / ADAPTER_CONFIG).exists() and find_adapter(folder) is None:
        return
    base = _read_config(folder).get("base_model_name_or_path")
    name = f" ({_in_a_line(base)})" if isinstance(base, str) and base else ""
    raise UnsupportedError(
        f"{folder} holds {_kind(folder)} without its model, and adapters are not supported: merge "
        f"it with its base_model_name_or_path{name} by PEFT's merge_and_unload() and give the "
        "folder of the result."
    )


def _kind(folder: Path) -> str:
    kind = _read_config(folder).get("peft_type", "LORA")
    return "a LoRA adapter" if kind == "LORA" else f"an adapter of type {_in_a_line(kind)}"


def _in_a_line(value: object) -> str:
    return " ".join(str(value).split())[:200]


def _read_config(folder: Path) -> dict[str, object]:
    # The adapter is not used, so it is enough to name it: a broken file is no reason to stop.
    try:
        return read_json_object(folder / ADAPTER_CONFIG, ConfigError)
    except ConfigError:
        return {}
