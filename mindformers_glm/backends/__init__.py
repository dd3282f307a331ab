"""THE place where CPU or Ascend is chosen."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.operators import Operators
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.system.log import note


@dataclass(frozen=True)
class Backend:
    """One row of the table: how to reach what is specific to a device.

    Attributes:
        name: `context.device_target` of the YAML files.
        cells: module with `OPERATORS`, `initialize()`, `connect()`, `set_num_threads()`,
            `weight_layout()` and `file_mapper()`; imported when the backend is used.
        runner: module with `create_runner` (backends/runner.py says what a runner does).
        missing: why the backend cannot be used yet, as one sentence; empty if it can.
    """

    name: str
    cells: str
    runner: str
    missing: str = ""

    def operators(self) -> Operators:
        """The Cell classes of this device."""
        return import_module(self.cells).OPERATORS

    def initialize(self) -> None:
        """Set MindSpore's context up for this device."""
        import_module(self.cells).initialize()

    def connect(self, tensor_parallel: TensorParallel) -> ProcessGroup:
        """Set the context up and find the other ranks of a launched job; once per process."""
        self.initialize()
        group: ProcessGroup = import_module(self.cells).connect(tensor_parallel)
        return group

    def set_num_threads(self, count: int | None) -> None:
        """Let the operators use `count` threads of the host; None: as many as is best."""
        import_module(self.cells).set_num_threads(count)

    def weight_layout(self) -> str:
        """How Parameters lie in memory; another name for every other layout."""
        return import_module(self.cells).weight_layout()

    def file_mapper(self) -> Callable[[np.ndarray, int, int], None] | None:
        """What lets an array be the part of an open file (-1: fresh memory) from an offset on."""
        return import_module(self.cells).file_mapper()

    def create_runner(self, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint into a network and return its runner."""
        return import_module(self.runner).create_runner(*args, **kwargs)


BACKENDS = {
    "CPU": Backend(
        "CPU",
        cells="mindformers_glm.backends.cpu.fused_layers",
        runner="mindformers_glm.backends.cpu.runner",
    ),
    "Ascend": Backend(
        "Ascend",
        cells="",
        runner="",
        missing="device_target Ascend is not implemented in this version: use --device_target CPU.",
    ),
}


def select_backend(
    device_target: str | None, has_ascend: Callable[[], bool] | None = None
) -> Backend:
    """Choose the backend and say which one where the user left the choice open.

    Args:
        device_target: "CPU", "Ascend", or None for Ascend where there is one, else CPU.
        has_ascend: whether this machine has an Ascend device; tests pass their own.
    Raises:
        UnsupportedError: no such backend, or it cannot be used.
    """
    if device_target is None:
        device_target = "Ascend" if (has_ascend or _has_ascend)() else "CPU"
        note(f"device_target is not set: running on {device_target}")
    if device_target not in BACKENDS:
        raise UnsupportedError(
            f"device_target must be one of {', '.join(BACKENDS)}, got {device_target!r}."
        )
    backend = BACKENDS[device_target]
    if backend.missing:
        raise UnsupportedError(backend.missing)
    return backend


def _has_ascend() -> bool:
    # The driver creates one device node per card; the package brings the runtime MindSpore needs.
    return any(Path("/dev").glob("davinci[0-9]*")) and find_spec("acl") is not None
