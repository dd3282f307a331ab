"""MindSpore's context on Ascend, and the other ranks, by upstream's own groups."""

import re
from functools import cache
from typing import Any

import mindspore as ms
import numpy as np
from mindformers.core.context.build_context import set_cpu_affinity
from mindformers.parallel_core.inference import parallel_state
from mindspore import Tensor, nn, ops
from mindspore._c_expression import MSContext

from mindformers_glm.backends.meeting import meet_ranks
from mindformers_glm.config.device_settings import DeviceSettings
from mindformers_glm.config.environment import declare_prediction, own_device
from mindformers_glm.core.errors import ConfigError, UnsupportedError, first_words
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel


@cache
def connect(tensor_parallel: TensorParallel) -> ProcessGroup:
    """Find and wait for the other ranks of a launched job, and form upstream's groups of them.

    Raises:
        ConfigError: they cannot be found, or the job has another number of ranks.
    """
    if tensor_parallel.size == 1:
        return ProcessGroup(tensor_parallel)
    meet_ranks(tensor_parallel)
    # Whoever came through upstream's own start has formed them.
    if not parallel_state.is_initialized():
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor_parallel.size)
    group = parallel_state.get_tensor_model_parallel_group()
    if group.size != tensor_parallel.size:
        raise ConfigError(
            f"MindSpore Transformers has split this job's {tensor_parallel.size} processes into "
            f"groups of {group.size}: set parallel_config.model_parallel to {tensor_parallel.size} "
            "and its other sizes to 1."
        )
    all_gather = _AllGather(group.group)

    def gather(values: np.ndarray) -> np.ndarray:
        gathered = all_gather(Tensor(values.view(np.int32))).asnumpy()
        return gathered.view(np.int64).reshape(tensor_parallel.size, len(values))

    return ProcessGroup(tensor_parallel, gather)


class _AllGather(nn.Cell):
    """int32 [n] of each rank -> [size * n]; a Cell, since it may be called in GRAPH_MODE."""

    def __init__(self, group: str) -> None:
        super().__init__()
        self.gather = ops.AllGather(group=group)

    def construct(self, values: Tensor) -> Tensor:
        return self.gather(values)


def set_context(device: DeviceSettings, tensor_parallel: TensorParallel) -> None:
    """Set what upstream sets for a prediction (mindformers 1.7.0, core/context/build_context.py).

    A second model of the process runs on the same card. Unlike there, a process is bound to cores
    only if the user has set CPU_AFFINITY: it may be a part of another program.

    Raises:
        ConfigError: no card can be meant.
    """
    is_pynative = device.mode == ms.PYNATIVE_MODE
    is_deterministic = device.infer_precision_sync or device.deterministic == "ON"
    declare_prediction(is_pynative, is_deterministic)
    take_card(own_device(device.device_id, tensor_parallel.size))
    ms.set_context(**context_of(device))
    set_cpu_affinity(tensor_parallel.rank, tensor_parallel.size)  # where CPU_AFFINITY asks for it
    if is_deterministic:
        _be_deterministic()


@cache
def _be_deterministic() -> None:
    """Once: MindSpore refuses it a second time."""
    ms.set_deterministic(True)


def context_of(device: DeviceSettings) -> dict[str, Any]:
    """The keyword arguments of `mindspore.set_context`."""
    context: dict[str, Any] = {
        "mode": device.mode,
        "jit_config": {"jit_level": "O0", "infer_boost": device.infer_boost},
        "max_call_depth": device.max_call_depth,
        "ascend_config": {"precision_mode": device.precision_mode},
    }
    if device.max_device_memory is not None:
        # MindSpore takes whole and broken numbers of 2**30 bytes.
        context["max_device_memory"] = f"{device.max_device_memory / 2**30:.3f}GB"
    return context


def take_card(device_id: int | None) -> None:
    """Choose the card of this process; None: MindSpore gives the ranks of a job theirs.

    A process has one card: a second model, or upstream's own start before it, leaves it as it is.

    Raises:
        ConfigError: another card is asked for, or the process runs on the CPU.
        UnsupportedError: MindSpore cannot load what it needs of CANN, or has no such card.
    """
    try:
        ms.set_device("Ascend", device_id)
    except (RuntimeError, ValueError) as problem:
        if re.search("can not be modified|has been initialized", str(problem)):
            _check_taken(device_id, is_set="can not be modified" in str(problem))
            return
        found = re.search(r"\S+\.so\S*: cannot open shared object file", str(problem))
        why = found[0] if found else first_words(problem)
        raise UnsupportedError(
            f"MindSpore cannot use Ascend: {why}; source CANN's set_env.sh, or set "
            "device_target to CPU (`mindformers-glm doctor` looks further)."
        ) from problem


def _check_taken(device_id: int | None, is_set: bool) -> None:
    """Args: is_set: by `mindspore.set_device`; else MindSpore began on Ascend without it."""
    target, taken = ms.get_current_device() if is_set else ("Ascend", ms.get_context("device_id"))
    if target != "Ascend" or device_id not in (None, taken):
        wanted = "Ascend" if device_id is None else f"Ascend {device_id}"
        raise ConfigError(
            f"This process runs on {target} {taken} already, and {wanted} is asked for: start a "
            "process of its own for it."
        )


def processor_name() -> str:
    """What MindSpore calls the card's processor: ascend910b, say; empty on a machine without."""
    return str(MSContext.get_instance().get_ascend_soc_version())
