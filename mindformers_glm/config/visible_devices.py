"""Which of a host's cards a process takes: its setting, DEVICE_ID, and what CANN shows of them.

CANN hides the cards that ASCEND_RT_VISIBLE_DEVICES does not list and counts the others from 0, so
every number here is a place in that list. In a job of several ranks MindSpore gives each the card
of its number on its host, which msrun and our launcher put into DEVICE_ID too. environment.py reads
the environment; here it is a mapping.

Source: CANN 8.0's description of the variable, MindSpore's `CollectiveManager::AssignLocalRank`.
"""

import re
from collections.abc import Mapping

from mindformers_glm.core.errors import ConfigError

VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"


def find_device(device_id: int, num_ranks: int, environ: Mapping[str, str]) -> int | None:
    """Return the card that this process takes; None where MindSpore chooses it.

    Args:
        device_id: the setting; 0 leaves the choice to DEVICE_ID.
        num_ranks: how many processes the job has.
    Raises:
        ConfigError: a card is named and every rank has its own, or the variables cannot be read as
            their user meant them, or fewer cards are shown.
    """
    visible = _read_visible(environ)
    own = _read_own(environ)
    if num_ranks == 1:
        device = device_id or own
        _check_shown(device or 0, "This process", visible)
        return device
    if device_id != 0:
        raise ConfigError(
            f"context.device_id {device_id} is for one process, and this job has {num_ranks}, each "
            f"on the card of its number on its host: leave it out, and say in {VISIBLE} which "
            "cards of the host the job may take."
        )
    _check_shown(own or 0, f"Rank {environ.get('RANK_ID')}", visible)
    return None


def _read_own(environ: Mapping[str, str]) -> int | None:
    given = environ.get("DEVICE_ID", "")
    if not given:
        return None
    if not given.isdecimal():
        raise ConfigError(
            f"The environment variable DEVICE_ID must be the number of a card, got {given!r}: set "
            f"it to a place in {VISIBLE}, or unset it."
        )
    return int(given)


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
            f"{who} takes card {device}, counted from 0, of those that {VISIBLE}={listed} shows, "
            f"and these are {len(visible)}: list more, or start fewer processes on this host."
        )
