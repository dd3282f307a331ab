"""The CPU as a backend. Nothing here imports MindSpore before it is needed."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from mindformers_glm.backends.backend import MemoryNeed
from mindformers_glm.backends.cpu import library
from mindformers_glm.backends.cpu.diagnosis import diagnose
from mindformers_glm.backends.cpu.footprint import count_memory
from mindformers_glm.backends.cpu.host_share import HostShare, share_host
from mindformers_glm.backends.runner import ModelRunner
from mindformers_glm.config.device_settings import DeviceSettings
from mindformers_glm.config.environment import has_own_num_threads
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.finding import Finding
from mindformers_glm.core.kv_cache import INT8
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import ROW_PARALLEL, TensorParallel
from mindformers_glm.core.stored_schemes import StoredSchemes
from mindformers_glm.system.host import Host
from mindformers_glm.system.log import note
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.packed_cache import PackedCacheSettings

_GRAPH_MODE = 0
LARGEST_INT8_HEAD = 512  # kMaxInt8HeadDim of csrc/kernel_table.h


class CpuBackend:
    """This project's own operators on the host's processors (protocol: backends/backend.py)."""

    name = "CPU"
    probe = "import mindspore"
    has_memory_for_each_rank = False

    def is_present(self) -> bool:
        """See Backend."""
        return True

    def find_obstacle(self) -> str:
        """Why it cannot be used here, as a sentence; empty if it can."""
        try:
            library.load()
        except (UnsupportedError, OSError) as problem:
            return str(problem)
        return ""

    def describe(self) -> str:
        """One line for --version."""
        return f"CPU operators {library.isa()}, {library.describe_build()}"

    def diagnose(self, host: Host) -> Iterable[Finding]:
        """See Backend."""
        return diagnose(host)

    def connect(self, tensor_parallel: TensorParallel, device: DeviceSettings) -> ProcessGroup:
        """See Backend."""
        if device.mode != _GRAPH_MODE:
            raise UnsupportedError(
                f"context.mode {device.mode} (PYNATIVE_MODE) is Ascend's alone: on the CPU the "
                "network is one graph of fused operators, so leave it out or set 0 (GRAPH_MODE)."
            )
        for sentence in device.idle_values(self.name):
            note(sentence)
        from mindformers_glm.backends.cpu import collectives

        return collectives.connect(tensor_parallel)

    def set_num_threads(self, group: ProcessGroup, count: int | None) -> None:
        """See Backend; OMP_NUM_THREADS comes before a rank's share of the cores, if it is less.

        Threads of several ranks that wait for a processor make every operator of every rank wait
        for the slowest: 8 threads on 2 processors took 15 times as long a token as 4.
        """
        share = _share_host_once(group)  # all ranks, whatever each was told
        if count is None and not has_own_num_threads():
            count = share.num_threads
        library.set_num_threads(count)
        asked = library.num_threads()
        if share.most_threads is None or asked <= share.most_threads:
            return
        ranks = f"{len(share.local_ranks)} ranks share this host's processors"
        if count is None:
            library.set_num_threads(share.num_threads)
            note(
                f"{ranks}: threads of each: {share.num_threads}, since those of OMP_NUM_THREADS "
                "would wait for each other; --num_threads takes any number"
            )
        else:
            note(
                f"{ranks}: with num_threads {count} each they wait for each other; leave it out "
                f"for {share.num_threads}"
            )

    def available_memory(self, group: ProcessGroup, own_bytes: int = 0) -> int | None:
        """See Backend; the host's memory is shared by its ranks."""
        return _share_host_once(group).available_memory(own_bytes)

    def check_supported(self, config: GlmConfig, settings: RunnerSettings) -> None:
        """See Backend; of what the config and the checkpoint can say, all but two things run."""
        if settings.kv_dtype == INT8 and config.head_dim > LARGEST_INT8_HEAD:
            raise UnsupportedError(
                f"kv_cache_dtype int8 takes heads of at most {LARGEST_INT8_HEAD} columns, and "
                f"{config.in_file_keys('head_dim')} is {config.head_dim}: set kv_cache_dtype to "
                "float16."
            )
        if others := [n for n in settings.rounded_columns if not n.endswith(ROW_PARALLEL)]:
            raise UnsupportedError(
                f"{others[0]} has scales of its inputs for each rank (tp_list), which only layers "
                "can have whose columns are split: quantize the model again without tp_size."
            )

    def check_checkpoint(
        self, config: GlmConfig, settings: RunnerSettings, stored: StoredSchemes
    ) -> None:
        """See Backend; every float type runs, so it is the same."""
        self.check_supported(config, settings)

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
        """See Backend."""
        from mindformers_glm.backends.cpu.runner import CpuModelRunner

        return CpuModelRunner(config, checkpoint, settings, packed_cache)

    def create_network(self, config: GlmConfig, given: Mapping[str, Any]) -> None:
        """See Backend; the network here is no MindSpore Transformers' own."""


@cache
def _share_host_once(group: ProcessGroup) -> HostShare:
    return share_host(group)
