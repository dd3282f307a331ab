"""The ChatGLM2 guide's variables that let quantized weights run in the place of a checkpoint's.

ENABLE_QUANT=1 QUANT_WEIGHT_PATH=DIR runs the .npy files of DIR, ENABLE_SPARSE=1 with
COMPRESS_WEIGHT_PATH besides what was compressed of them. The compressed bytes are in a format that
is not public; the integers that they were made of are those of QUANT_WEIGHT_PATH.
"""

from collections.abc import Mapping
from pathlib import Path

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.system.log import note

_QUANT, _SPARSE = "ENABLE_QUANT", "ENABLE_SPARSE"
_PATH, _COMPRESSED = "QUANT_WEIGHT_PATH", "COMPRESS_WEIGHT_PATH"


def find_quantized_folder(environ: Mapping[str, str]) -> Path | None:
    """The folder of quantized weights, None where the variables ask for none.

    Raises:
        ConfigError: a switch is neither 0 nor 1, both are 1, or QUANT_WEIGHT_PATH is no folder.
    """
    switches = {name: _read_switch(environ, name) for name in (_QUANT, _SPARSE)}
    path = environ.get(_PATH, "")
    if all(switches.values()):
        raise ConfigError(f"{_QUANT}=1 and {_SPARSE}=1 exclude each other: unset one of them.")
    for name, is_on in switches.items():
        if is_on and not path:
            raise ConfigError(
                f"{name}=1 needs {_PATH}, the folder of the quantized weights: set it, or unset "
                f"{name}."
            )
    if not any(switches.values()):
        if path:
            note(f"{_PATH} is not used without {_QUANT}=1 or {_SPARSE}=1")
        return None
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise ConfigError(f"{_PATH} must name a folder, {folder} is none.")
    if switches[_SPARSE]:
        note(
            f"{_COMPRESSED} is not read, the format of compressed weights is not public: what "
            f"{_PATH} holds runs, which should be the W8A8S weights that they were made of"
        )
    return folder


def _read_switch(environ: Mapping[str, str], name: str) -> bool:
    value = environ.get(name, "")
    if value not in ("", "0", "1"):
        raise ConfigError(f"{name} must be 0 or 1, got {value!r}.")
    return value == "1"
