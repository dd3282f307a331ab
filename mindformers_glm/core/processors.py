"""The processors this process may use, and how many threads that allows."""

import os
from collections.abc import Iterable
from pathlib import Path

from mindformers_glm.core.errors import ConfigError


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


def check_num_threads(num_threads: object) -> None:
    """Refuse a number of threads that the machine cannot run at the same time; None is fine.

    Raises:
        ConfigError: not a whole number from 1 to the number of the machine's processors.
    """
    if num_threads is None:
        return
    most = os.cpu_count() or 1
    is_whole = isinstance(num_threads, int) and not isinstance(num_threads, bool)
    if not is_whole or not 1 <= num_threads <= most:  # type: ignore[operator]
        raise ConfigError(
            f"num_threads must be a whole number from 1 to {most}, the processors of this machine, "
            f"got {num_threads!r}: leave it out for one thread on each core."
        )
