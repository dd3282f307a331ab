"""What the cards that configs/ is written for give a process."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """One kind of card.

    memory: as it is sold; usable_bytes: `max_device_memory` of the files of configs/ for it.
    """

    device_target: str
    memory: str
    usable_bytes: int


# MindSpore Transformers 1.7.0, configs/glm4/README.md: at most 60GB on Atlas 800T A2 and 900 A3,
# 30GB on Atlas 800I A2. Its files, and ours, say one less.
CARDS = (Card("Ascend", "64 GB", 59 * 2**30), Card("Ascend", "32 GB", 29 * 2**30))
