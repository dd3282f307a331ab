"""Ascend as a backend. Nothing here imports MindSpore before it is needed."""

from importlib.util import find_spec
from pathlib import Path

from mindformers_glm.backends.ascend.footprint import count_memory
from mindformers_glm.backends.ascend.support import check_supported
from mindformers_glm.backends.backend import MemoryNeed
from mindformers_glm.backends.runner import ModelRunner
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.packed_cache import PackedCacheSettings


class AscendBackend:
    """MindSpore Transformers' inference network on an NPU (protocol: backends/backend.py)."""

    name = "Ascend"

    def find_obstacle(self) -> str:
        """Why it cannot be used here, as a sentence; empty if it can."""
        # The driver makes a device node for each card; CANN brings the package.
        if not any(Path("/dev").glob("davinci[0-9]*")):
            return (
                "device_target Ascend needs an NPU and its driver, and there is no /dev/davinci0: "
                "set device_target to CPU, or give the container the device."
            )
        if find_spec("acl") is None:
            return (
                "device_target Ascend needs CANN, and Python finds no acl: run `source "
                "/usr/local/Ascend/ascend-toolkit/set_env.sh`, or set device_target to CPU."
            )
        return ""

    def describe(self) -> str:
        """One line for --version."""
        return "Ascend, by MindSpore Transformers' own network"

    def connect(self, tensor_parallel: TensorParallel) -> ProcessGroup:
        """See Backend."""
        from mindformers_glm.backends.ascend import context

        context.set_context()
        return context.connect(tensor_parallel)

    def set_num_threads(self, group: ProcessGroup, count: int | None) -> None:
        """See Backend; the operators run on the device, so there is nothing to set."""

    def available_memory(self, group: ProcessGroup, own_bytes: int = 0) -> int | None:
        """See Backend; of this rank's device."""
        from mindformers_glm.backends.ascend.device_memory import free_bytes

        free = free_bytes()
        return None if free is None else free + own_bytes

    def memory_need(self, config: GlmConfig, settings: RunnerSettings) -> MemoryNeed:
        """See Backend."""
        return count_memory(config, settings)

    def create_runner(
        self,
        config: GlmConfig,
        checkpoint: Checkpoint,
        settings: RunnerSettings,
        packed_cache: PackedCacheSettings | None = None,
    ) -> ModelRunner:
        """See Backend; weights go to the device as they are, so there is nothing to cache."""
        from mindformers_glm.backends.ascend.context import processor_name
        from mindformers_glm.backends.ascend.runner import AscendModelRunner

        check_supported(config, settings, processor_name())
        return AscendModelRunner(config, checkpoint, settings)
