"""MindSpore's context on Ascend, and the other ranks, by upstream's own groups."""

import re
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from mindformers_glm.backends.meeting import meet_ranks
from mindformers_glm.config.device_settings import DeviceSettings
from mindformers_glm.config.environment import declare_prediction, launched_device
from mindformers_glm.core.errors import UnsupportedError, first_words
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel


def connect(tensor_parallel: TensorParallel) -> ProcessGroup:
    """Find and wait for the other ranks of a launched job, and form upstream's groups of them.

    Raises:
        ConfigError: they cannot be found, or the job has another number of ranks.
    """
    if tensor_parallel.size == 1:
        return ProcessGroup(tensor_parallel)
    from mindformers.parallel_core.inference import parallel_state

    meet_ranks(tensor_parallel)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tensor_parallel.size)
    all_gather = ops.AllGather()

    def gather(values: np.ndarray) -> np.ndarray:
        gathered = all_gather(Tensor(values.view(np.int32))).asnumpy()
        return gathered.view(np.int64).reshape(tensor_parallel.size, len(values))

    return ProcessGroup(tensor_parallel, gather)


def set_context(device: DeviceSettings) -> None:
    """Set what upstream sets for a prediction (mindformers 1.7.0, core/context/build_context.py).

    A second model of the process runs on the same card.
    """
    is_pynative = device.mode == ms.PYNATIVE_MODE
    is_deterministic = device.infer_precision_sync or device.deterministic == "ON"
    declare_prediction(is_pynative, is_deterministic)
    take_card(device.device_id)
    ms.set_context(**context_of(device))
    if is_deterministic:
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


def take_card(device_id: int) -> None:
    """Choose the card of this process; MindSpore gives the ranks of a launched job theirs.

    Raises:
        UnsupportedError: MindSpore cannot load what it needs of CANN, or has no such card.
    """
    if ms.get_context("device_target") == "Ascend":
        return
    try:
        ms.set_device("Ascend", device_id or launched_device())
    except (RuntimeError, ValueError) as problem:
        found = re.search(r"\S+\.so\S*: cannot open shared object file", str(problem))
        why = found[0] if found else first_words(problem)
        raise UnsupportedError(
            f"MindSpore cannot use Ascend: {why}; source CANN's set_env.sh, or set "
            "device_target to CPU (`mindformers-glm doctor` looks further)."
        ) from problem
