"""Which of a host's Ascend devices a process takes: its setting, its launcher, what CANN shows it.

CANN hides the devices that ASCEND_RT_VISIBLE_DEVICES does not list and counts the others from 0, so
every number here is a place in that list. In a job of several ranks MindSpore gives each the device
of its number on its host, which msrun and our launcher put into DEVICE_ID. environment.py reads the
environment; here it is a mapping.
"""

import re
from collections.abc import Mapping

from mindformers_glm.core.errors import ConfigError

VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


def find_device(device_id: int, num_ranks: int, environ: Mapping[str, str]) -> int | None:
    """Return the device that this process takes; None in a job, where MindSpore chooses it.

    Args:
        device_id: the setting.
        num_ranks: how many processes the job has.
    Raises:
        ConfigError: the setting names a device and every rank has its own, the list cannot be read
            as its user meant it, or it is too short.
    """
    visible = _read_visible(environ)
    if num_ranks == 1:
        _check_shown(device_id, f"context.device_id {device_id}", visible)
        return device_id
    if device_id != 0:
        raise ConfigError(
            f"context.device_id {device_id} is for one process, and this job has {num_ranks}, each "
            f"on the device of its number on its host: leave it out, and say in {VISIBLE} which "
            "devices of the host the job may take."
        )
    own = environ.get("DEVICE_ID", "")
    if own.isdecimal():
        _check_shown(int(own), f"rank {environ.get('RANK_ID')}, number {own} on its host,", visible)
    return None


def _read_visible(environ: Mapping[str, str]) -> tuple[int, ...] | None:
    given = environ.get(VISIBLE)
    if given is None:
        return None
    numbers = re.fullmatch(r"\d+(,\d+)*", given) and tuple(map(int, given.split(",")))
    if not numbers or numbers != tuple(sorted(set(numbers))):
        raise ConfigError(
            f"The environment variable {VISIBLE} must list numbers in ascending order with nothing "
            f"but commas between them, such as 0,1,2,3, got {given!r}: CANN does not read on where "
            "another character comes."
        )
    return numbers


def _check_shown(device: int, who: str, visible: tuple[int, ...] | None) -> None:
    if visible is not None and device >= len(visible):
        listed = ",".join(map(str, visible))
        raise ConfigError(
            f"{who} takes place {device} of the devices that {VISIBLE}={listed} shows, which has "
            f"places 0 to {len(visible) - 1}: list more devices, or take fewer."
        )
