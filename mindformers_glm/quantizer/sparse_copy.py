"""What is left of compressing sparse weights where the vendor's compressor is not: a copy.

The bytes of W8A8SC are made by a program of one kind of card, in a format that is not public. What
goes into it, W8A8S, is what everything else reads.
"""

import shutil
from pathlib import Path

from mindformers_glm.core.errors import CheckpointError, ConfigError
from mindformers_glm.quantization.msmodelslim import find_description
from mindformers_glm.quantizer.export.write_folder import FOLDER_MODE, check_place
from mindformers_glm.system.files import read_json_object, require_folder
from mindformers_glm.system.new_folder import new_folder
from mindformers_glm.weights.numpy_set import has_numpy_set

_SPARSE = "W8A8S"


def copy_sparse(weights: Path, output: Path) -> None:
    """Copy a folder of W8A8S, in safetensors or .npy files.

    Args:
        weights: the folder, or its quant_weight.npy.
    Raises:
        ConfigError: it holds something else, or the place is not usable.
        CheckpointError: the disk is full, say.
    """
    folder = weights.parent if weights.suffix == ".npy" else weights
    folder = require_folder(folder, ConfigError)
    if (found := _find_type(folder)) != _SPARSE:
        raise ConfigError(
            f"{folder} holds {found}, and what a compressor takes is {_SPARSE}: make that with "
            "scripts/export_quant_weight.py --sparse or scripts/convert_quant_weights.sh."
        )
    check_place(folder, output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(output) as temporary:
            shutil.copytree(folder, temporary, dirs_exist_ok=True)
            temporary.chmod(FOLDER_MODE)
    except shutil.Error as problem:
        raise CheckpointError(f"Cannot copy {folder} to {output}: {problem}.") from None
    except OSError as problem:
        raise CheckpointError(f"Cannot write {output}: {problem.strerror}.") from None


def _find_type(folder: Path) -> str:
    """What the folder holds, by msModelSlim's word."""
    if (description := find_description(folder)) is not None:
        return str(read_json_object(description, CheckpointError).get("model_quant_type"))
    if has_numpy_set(folder):
        return "W8A8" if (folder / "weight_scale.npy").exists() else _SPARSE
    return "no quantized weights of msModelSlim"
