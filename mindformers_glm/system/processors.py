"""The processors this process may use, and how many threads that allows."""

import os
from collections.abc import Iterable
from pathlib import Path


def count_physical_cores(processors: Iterable[int] | None = None, root: Path = Path("/")) -> int:
    """Return how many cores are behind the processors that this process may run on.

    Args:
        processors: their numbers; None: the affinity mask of this process.
        root: see `physical_cores`.
    """
    return max(
        1, len(physical_cores(usable_processors() if processors is None else processors, root))
    )


def physical_cores(processors: Iterable[int], root: Path = Path("/")) -> set[str]:
    """Return a name for each core behind these processors.

    Two hyperthreads of one core share its arithmetic and its way to memory, so a second thread on
    it wins nothing.

    Args:
        processors: their numbers.
        root: where /sys is looked for; a processor that is not described there counts as a core.
    """
    folder = root / "sys/devices/system/cpu"
    cores = set()
    for processor in processors:
        try:
            # "0,64" or "0-1": the processors of this one's core.
            core = (folder / f"cpu{processor}/topology/thread_siblings_list").read_text().strip()
        except OSError:
            core = str(processor)
        cores.add(core)
    return cores


def usable_processors() -> set[int]:
    """Numbers of the processors in the affinity mask, where the system has one, else all."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))
