"""MindSpore's context on Ascend, and the other ranks, by upstream's own groups."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore._c_expression import MSContext

from mindformers_glm.backends.meeting import meet_ranks
from mindformers_glm.config.environment import declare_prediction
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


def set_context() -> None:
    """Set what upstream sets for a prediction (mindformers 1.7.0, core/context/build_context.py).

    Whoever set PYNATIVE_MODE or another device before keeps it: MindSpore refuses a change once
    anything has run.
    """
    declare_prediction()
    ms.set_context(jit_config={"jit_level": "O0", "infer_boost": "on"}, max_call_depth=10000)


def processor_name() -> str:
    """What MindSpore calls the card's processor: ascend910b, say; empty on a machine without."""
    return str(MSContext.get_instance().get_ascend_soc_version())
