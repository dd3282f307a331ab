"""The setting `num_threads`, held against the machine."""

import os

from mindformers_glm.core.errors import ConfigError


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
