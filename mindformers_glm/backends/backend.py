"""What the rest of the program knows of a device."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mindformers_glm.backends.runner import ModelRunner
from mindformers_glm.config.device_settings import DeviceSettings
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.finding import Finding
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.core.stored_schemes import StoredSchemes
from mindformers_glm.system.host import Host
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.packed_cache import PackedCacheSettings


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that one rank's network takes.

    Attributes:
        weights_bytes: of all Parameters that hold weights.
        workspace_bytes: activations, logits and tables at the largest step; an upper estimate.
        kv_block_bytes: one KV-cache block in all layers, keys and values.
    """

    weights_bytes: int
    workspace_bytes: int
    kv_block_bytes: int


class Backend(Protocol):
    """One kind of device: it makes runners, and knows what they need and what there is.

    Attributes:
        name: `context.device_target` of the YAML files.
        probe: Python code that starts MindSpore on it; for a process of its own.
        has_memory_for_each_rank: whether a further rank brings memory of its own, as a card does;
            else all ranks share the machine's.
    """

    name: str
    probe: str
    has_memory_for_each_rank: bool

    def is_present(self) -> bool:
        """Whether this machine has such a device, be it usable or not."""
        ...

    def find_obstacle(self) -> str:
        """Why it cannot be used on this machine, as one sentence; empty if it can."""
        ...

    def describe(self) -> str:
        """What of it is in use here, in one line."""
        ...

    def diagnose(self, host: Host) -> Iterable[Finding]:
        """What `mindformers-glm doctor` finds; the first problem stops a model.

        One finding alone says that there is nothing of the device on this machine.
        """
        ...

    def connect(self, tensor_parallel: TensorParallel, device: DeviceSettings) -> ProcessGroup:
        """Set MindSpore's context up and find the other ranks of a launched job; waits for them.

        Raises:
            ConfigError: ranks are missing, or there are others than expected.
            UnsupportedError: this device cannot be set up so.
        """
        ...

    def set_num_threads(self, group: ProcessGroup, count: int | None) -> None:
        """Let the operators of this process use `count` threads of the host; None: what is best.

        All ranks ask together: those of one host share its cores.
        """
        ...

    def available_memory(self, group: ProcessGroup, own_bytes: int = 0) -> int | None:
        """Bytes that this rank can take; None where nobody knows. All ranks ask together.

        Args:
            own_bytes: what this rank holds already and counts as available to it.
        """
        ...

    def check_supported(self, config: GlmConfig, settings: RunnerSettings) -> None:
        """Refuse a network or a setting that cannot run on it, from the config alone.

        Raises:
            UnsupportedError: names it, and what to do.
        """
        ...

    def check_checkpoint(
        self, config: GlmConfig, settings: RunnerSettings, stored: StoredSchemes
    ) -> None:
        """Refuse what a checkpoint brings that cannot run on it, in whatever float types.

        It asks for no device, so that a machine without one can tell.

        Args:
            stored: how each matrix is quantized, also those that run as float here.
        Raises:
            UnsupportedError: names it, and what to do.
        """
        ...

    def memory_need(self, config: GlmConfig, settings: RunnerSettings) -> MemoryNeed:
        """What a network will take, from its config alone."""
        ...

    def create_runner(
        self,
        config: GlmConfig,
        checkpoint: Checkpoint,
        settings: RunnerSettings,
        packed_cache: PackedCacheSettings | None = None,
    ) -> ModelRunner:
        """Build the network of `settings.tensor_parallel`, load its weights; behind `connect`.

        Args:
            packed_cache: where what loading makes is kept for the next start; None: nowhere.
        Raises:
            CheckpointError: a file is damaged, or tensors are missing, unknown or of wrong shape.
        """
        ...

    def create_network(self, config: GlmConfig, given: Mapping[str, Any]) -> Any | None:
        """MindSpore Transformers' own network, for its callers; None where the network is another.

        It has no weights yet, and what upstream calls on a network of its own: `construct` with its
        flat arguments, `generate`, and `load_weights`, which takes a folder or a Checkpoint. The
        context and the groups of ranks are the caller's; where there are none, they are made.

        Args:
            given: the caller's configuration: settings of a run, and what upstream's code reads.
        """
        ...
