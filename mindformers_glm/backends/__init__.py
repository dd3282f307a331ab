"""The devices; `select_backend` is the one place where one is chosen.

A backend takes (config, checkpoint, settings) and gives a runner: backend.py, runner.py. Nothing
outside this package knows more of a device.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from mindformers_glm.backends.backend import Backend, MemoryNeed
from mindformers_glm.backends.cpu.backend import CpuBackend
from mindformers_glm.backends.part_report import SelfTestReport
from mindformers_glm.backends.runner import ModelBatch, ModelRunner
from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.system.log import note

__all__ = [
    "BACKENDS",
    "Backend",
    "MemoryNeed",
    "ModelBatch",
    "ModelRunner",
    "default_target",
    "find_backend",
    "run_ascend_selftest",
    "select_backend",
]

BACKENDS: dict[str, Backend] = {"CPU": CpuBackend()}
# What device_target may say and this version cannot do.
_MISSING = {
    "Ascend": "device_target Ascend is not implemented in this version: set device_target to CPU."
}


def select_backend(
    device_target: str | None, has_ascend: Callable[[], bool] | None = None
) -> Backend:
    """Choose the backend to run on, and say which one where the user left the choice open.

    Args:
        device_target: "CPU", "Ascend", or None for Ascend where there is one, else CPU.
        has_ascend: whether this machine has an Ascend device; tests pass their own.
    Raises:
        UnsupportedError: no such backend, or it cannot be used here.
    """
    if device_target is None:
        device_target = default_target(has_ascend)
        note(f"device_target is not set: running on {device_target}")
    return find_backend(device_target)


def default_target(has_ascend: Callable[[], bool] | None = None) -> str:
    """What a run takes where device_target is not set."""
    return "Ascend" if (has_ascend or _has_ascend)() else "CPU"


def find_backend(device_target: str) -> Backend:
    """Return the backend of this name.

    Raises:
        UnsupportedError: there is none, or it cannot be used here.
    """
    if device_target in _MISSING:
        raise UnsupportedError(_MISSING[device_target])
    if device_target not in BACKENDS:
        names = ", ".join((*BACKENDS, *_MISSING))
        raise UnsupportedError(f"device_target must be one of {names}, got {device_target!r}.")
    backend = BACKENDS[device_target]
    if obstacle := backend.find_obstacle():
        raise UnsupportedError(obstacle)
    return backend


def run_ascend_selftest(folder: Path, dtype: str | None = None) -> SelfTestReport:
    """Compare the Ascend network with the CPU network part by part, on the same weights.

    Args:
        dtype: "float16" or "bfloat16"; None: the checkpoint's type.
    Raises:
        UnsupportedError: there is no card, or one of the two cannot run the checkpoint.
        CheckpointError: a file is damaged, or tensors are missing, unknown or of wrong shape.
    """
    find_backend("CPU")
    backend = find_backend("Ascend")
    backend.connect(TensorParallel())
    from mindformers_glm.backends.ascend.selftest import run_selftest
    from mindformers_glm.backends.cpu.parts import CpuParts

    return run_selftest(folder, CpuParts, dtype)


def _has_ascend() -> bool:
    # The driver creates one device node per card; the package brings the runtime MindSpore needs.
    return any(Path("/dev").glob("davinci[0-9]*")) and find_spec("acl") is not None
