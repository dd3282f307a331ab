"""Ascend as a backend. Nothing here imports MindSpore before it is needed."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mindformers_glm.backends.ascend.diagnosis import diagnose
from mindformers_glm.backends.ascend.footprint import count_memory
from mindformers_glm.backends.ascend.support import (
    check_checkpoint,
    check_device,
    check_supported,
)
from mindformers_glm.backends.backend import MemoryNeed
from mindformers_glm.backends.runner import ModelRunner
from mindformers_glm.config.device_settings import DeviceSettings
from mindformers_glm.config.environment import launched_rank
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.finding import Finding
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.core.stored_schemes import StoredSchemes
from mindformers_glm.system.host import Host
from mindformers_glm.system.log import note
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.packed_cache import PackedCacheSettings


class AscendBackend:
    """MindSpore Transformers' inference network on an NPU (protocol: backends/backend.py)."""

    name = "Ascend"
    probe = (
        "import mindspore as ms; ms.set_device('Ascend'); ms.ops.zeros((1,), ms.float16).asnumpy()"
    )
    has_memory_for_each_rank = True

    def __init__(self) -> None:
        self._free_before: int | None = None  # before this process put anything on the card

    def is_present(self) -> bool:
        """See Backend; the driver makes a device node for each card."""
        return any(Path("/dev").glob("davinci[0-9]*"))

    def find_obstacle(self) -> str:
        """Why it cannot be used here, as a sentence; empty if it can."""
        if not self.is_present():
            return (
                "device_target Ascend needs an NPU and its driver, and there is no /dev/davinci0: "
                "set device_target to CPU, or give the container the device."
            )
        if find_spec("acl") is None:  # a package that comes with CANN
            return (
                "device_target Ascend needs CANN, and Python finds no acl: run `source "
                "/usr/local/Ascend/ascend-toolkit/set_env.sh`, or set device_target to CPU."
            )
        return ""

    def describe(self) -> str:
        """One line for --version."""
        return "Ascend, by MindSpore Transformers' own network"

    def diagnose(self, host: Host) -> Iterable[Finding]:
        """See Backend."""
        return diagnose(host)

    def connect(self, tensor_parallel: TensorParallel, device: DeviceSettings) -> ProcessGroup:
        """See Backend."""
        check_device(device)
        from mindformers_glm.backends.ascend import context

        context.set_context(device, tensor_parallel)
        return context.connect(tensor_parallel)

    def set_num_threads(self, group: ProcessGroup, count: int | None) -> None:
        """See Backend."""
        if count is not None:
            note(f"num_threads {count} changes nothing here: the operators run on the card.")

    def available_memory(self, group: ProcessGroup, own_bytes: int = 0) -> int | None:
        """See Backend; of this rank's card.

        With `own_bytes` it is what was free when nothing was held: weights may be on the card, in
        part or not yet, so what is free now cannot tell.
        """
        from mindformers_glm.backends.ascend.device_memory import free_bytes

        if own_bytes == 0:
            self._free_before = free_bytes()
        return self._free_before

    def check_supported(self, config: GlmConfig, settings: RunnerSettings) -> None:
        """See Backend."""
        from mindformers_glm.backends.ascend.context import processor_name

        check_supported(config, settings, processor_name())

    def check_checkpoint(
        self, config: GlmConfig, settings: RunnerSettings, stored: StoredSchemes
    ) -> None:
        """See Backend."""
        check_checkpoint(config, settings, stored)

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
        if packed_cache is not None and packed_cache.mode in ("on", "verify"):
            note(
                f"packed_cache {packed_cache.mode} changes nothing here: weights go to the card as "
                "they are stored."
            )
        from mindformers_glm.backends.ascend.runner import AscendModelRunner

        return AscendModelRunner(config, checkpoint, settings)

    def create_network(self, config: GlmConfig, given: Mapping[str, Any]) -> Any:
        """See Backend; without a context of the caller's it is made as for a runner."""
        from mindformers_glm.backends.ascend import upstream_network

        if not upstream_network.has_context():
            size = given.get("model_parallel") or 1
            device = DeviceSettings.from_options(given.get("device_options"), None)
            self.connect(TensorParallel(size, launched_rank(size)), device)
            upstream_network.make_context()
        return upstream_network.UpstreamGlmForCausalLM(config, given)
