"""Which quantizing tool wrote a checkpoint: told by the folder's own files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.core.quantized_linear import CheckpointFormat, StoredTensors
from mindformers_glm.quantization import (
    bitsandbytes,
    chatglm_packed,
    compressed_tensors,
    gptq,
    msmodelslim,
    numpy_set,
    share_format,
)
from mindformers_glm.system.files import read_json_if_present

# What AutoGPTQ and AutoAWQ wrote beside the model before config.json had quantization_config.
_OLD_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}
_CONVERT = {
    "auto-round": "export it again with AutoRound's format auto_gptq or auto_awq",
    "intel/auto-round": "export it again with AutoRound's format auto_gptq or auto_awq",
    "fp8": "use the bfloat16 checkpoint that it was made of",
    "mxfp4": "use the bfloat16 checkpoint that it was made of",
}
# What a folder must have besides where a tensor's name ends so.
_SETTINGS = "config.json has no quantization_config"
_WORDS = f"{_SETTINGS}, and there is no quantize_config.json or quant_config.json"
_LOST = {
    ".qweight": _WORDS,
    ".weight_packed": _SETTINGS,
    ".SCB": _SETTINGS,
    ".weight_offset": "the folder has no quant_model_description*.json",
    ".deq_scale": "the folder has no quant_model_description*.json",
}
_READ = "compressed-tensors, gptq, awq, bitsandbytes and msModelSlim's description are read"


def find_format(folder: Path, source: StoredTensors) -> CheckpointFormat | None:
    """The format of a checkpoint's quantized layers; None: all are float.

    Args:
        source: its tensors, of which headers are known.
    Raises:
        CheckpointError: what the folder says of itself is damaged or does not fit.
        UnsupportedError: it is quantized in a way that this version does not read.
    """
    if (shares := folder / share_format.DESCRIPTION_NAME).exists():
        return share_format.open_format(shares, source)
    path = folder / "config.json"
    raw = read_json_if_present(path, CheckpointError)
    if (description := msmodelslim.find_description(folder)) is not None:
        return msmodelslim.open_format(description, raw.get("quantize"), source)
    if (folder / "quant_weight.npy").is_file():
        return numpy_set.open_format(raw.get("quantize"), source)
    msmodelslim.refuse_compressed(folder, raw.get("quantize"))
    if raw.get("quantize"):
        raise CheckpointError(
            f"{path} says quantize {raw['quantize']!r:.40}, but {folder} has no "
            "quant_model_description*.json: copy it too."
        )
    # The second is what compressed-tensors wrote before 0.6.
    for key in ("quantization_config", "compression_config"):
        if config := raw.get(key):
            return _by_method(config, f"{key} in {path}", source)
    if raw.get("quantization_bit"):
        return chatglm_packed.open_format(raw["quantization_bit"], source)
    for name, method in _OLD_FILES.items():
        if config := read_json_if_present(folder / name, CheckpointError):
            return _by_method({"quant_method": method} | config, str(folder / name), source)
    _refuse_lost_settings(folder, source)
    return None


def _refuse_lost_settings(folder: Path, source: StoredTensors) -> None:
    for end, what in _LOST.items():
        name = next((name for name in source.entries if name.endswith(end)), None)
        if name is not None:
            raise CheckpointError(
                f"{folder} holds quantized weights ({name}), but {what}: copy that from where the "
                "weights come from, or write it as docs/quantization.md says."
            )


def _by_method(config: Any, where: str, source: StoredTensors) -> CheckpointFormat:
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{where} is {config!r:.60}, expected an object.")
    method = config.get("quant_method")
    if method == "compressed-tensors":
        return compressed_tensors.open_format(config, where, source)
    if method == "bitsandbytes":
        return bitsandbytes.open_format(config, where, source)
    if method in ("gptq", "awq"):
        return gptq.open_format(config, where, source)
    remedy = _CONVERT.get(str(method), "use the float checkpoint")
    raise UnsupportedError(
        f"{where} has quant_method {method!r:.40}, which is not supported ({_READ}): {remedy}."
    )
