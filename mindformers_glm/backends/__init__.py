"""The devices; `select_backend` is the one place where one is chosen.

A backend takes (config, checkpoint, settings) and gives a runner: backend.py, runner.py. Nothing
outside this package knows more of a device.
"""

from collections.abc import Sequence
from pathlib import Path

from mindformers_glm.backends.ascend.backend import AscendBackend
from mindformers_glm.backends.backend import Backend, MemoryNeed
from mindformers_glm.backends.cpu.backend import CpuBackend
from mindformers_glm.backends.float_operators import FloatMatrix, FloatOperators
from mindformers_glm.backends.part_report import SelfTestReport
from mindformers_glm.backends.runner import ModelBatch, ModelRunner
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.system.log import note

__all__ = [
    "BACKENDS",
    "FLOAT_TARGET",
    "Backend",
    "FloatMatrix",
    "FloatOperators",
    "MemoryNeed",
    "ModelBatch",
    "ModelRunner",
    "default_target",
    "find_backend",
    "make_float_operators",
    "run_ascend_selftest",
    "select_backend",
]

BACKENDS: dict[str, Backend] = {"CPU": CpuBackend(), "Ascend": AscendBackend()}
# Where float32 runs on every machine: `make_float_operators`, and what is compared with them.
FLOAT_TARGET = "CPU"


def select_backend(device_target: str | None) -> Backend:
    """Choose the backend to run on, and say which one where the user left the choice open.

    Args:
        device_target: "CPU", "Ascend", or None for Ascend where it can be used, else CPU.
    Raises:
        UnsupportedError: no such backend, or it cannot be used here.
    """
    if device_target is None:
        device_target = default_target()
        ascend = BACKENDS["Ascend"]
        why = ascend.find_obstacle() if ascend.is_present() else ""
        note(f"device_target is not set: running on {device_target}{why and f'. {why}'}")
    return find_backend(device_target)


def default_target() -> str:
    """What a run takes where device_target is not set."""
    ascend = BACKENDS["Ascend"]
    return "Ascend" if ascend.is_present() and not ascend.find_obstacle() else "CPU"


def find_backend(device_target: str) -> Backend:
    """Return the backend of this name.

    Raises:
        UnsupportedError: there is none, or it cannot be used here.
    """
    if device_target not in BACKENDS:
        raise UnsupportedError(
            f"device_target must be one of {', '.join(BACKENDS)}, got {device_target!r}."
        )
    backend = BACKENDS[device_target]
    if obstacle := backend.find_obstacle():
        raise UnsupportedError(obstacle)
    return backend


def make_float_operators(
    config: GlmConfig, seq_lens: Sequence[int], is_exact: bool
) -> FloatOperators:
    """The network's operators in float32, which the host's processor runs on every machine.

    Args:
        seq_lens: tokens of each sequence that they are for.
        is_exact: products are float32 throughout; else 16 bits count where that is faster.
    Raises:
        UnsupportedError: the kernels are not built.
    """
    from mindformers_glm.backends.cpu import library
    from mindformers_glm.backends.cpu.float_operators import CpuFloatOperators

    library.library_path()
    return CpuFloatOperators(config, seq_lens, is_exact)


def run_ascend_selftest(folder: Path, dtype: str | None = None) -> SelfTestReport:
    """Compare the Ascend network with the CPU network part by part, on the same weights.

    Args:
        dtype: "float16" or "bfloat16"; None: the checkpoint's type, float16 for a float32 one.
    Raises:
        UnsupportedError: there is no card, or one of the two cannot run the checkpoint.
        MemoryBudgetError: it does not fit on the card, or once more into the host's memory.
        CheckpointError: a file is damaged, or tensors are missing, unknown or of wrong shape.
    """
    ascend, cpu = find_backend("Ascend"), find_backend("CPU")
    from mindformers_glm.backends.ascend.selftest import run_selftest
    from mindformers_glm.backends.cpu.parts import CpuParts

    return run_selftest(folder, dtype, ascend, cpu, CpuParts)
