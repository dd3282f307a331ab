"""What `npu-smi info` prints, read: the chips, their state and memory.

The table has two rows a chip. Written for the forms of npu-smi 22 to 26, which differ in widths and
in the second number of the second row: none on an Atlas A2, where HBM stands behind an empty DDR;
the device on a 300I Duo; Phy-ID on an A3, which has two chips on a card.
"""

import re
from dataclasses import dataclass

_BUS = re.compile(r"[0-9A-Fa-f]{4}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f]|N/?A")
_USAGE = re.compile(r"(\d+)\s*/\s*(\d+)")
_NAME = re.compile(r"(\d+)\s+([A-Za-z0-9]*[A-Za-z]\w*)")


@dataclass(frozen=True)
class NpuChip:
    """One chip, which is one device to CANN.

    Attributes:
        card: its number as npu-smi counts.
        device: its number as /dev/davinci counts, and ASCEND_RT_VISIBLE_DEVICES on the host.
        name: "910B3", "310P3", "Ascend910" (Atlas A3).
        health: "OK", "Warning", "Alarm", "Critical" or "UNKNOWN".
        used_bytes, total_bytes: of its memory; None where the table does not tell.
    """

    card: int
    device: int
    name: str
    health: str
    used_bytes: int | None = None
    total_bytes: int | None = None


def parse_chips(text: str) -> list[NpuChip]:
    """Read the table; what does not look like it is left out."""
    chips = []
    above: tuple[int, str, str] | None = None  # card, name and health of the row before
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) != 3:  # a rule, or a row of the processes below, which has more
            continue
        if name := _NAME.fullmatch(cells[0]):
            above = (int(name[1]), name[2], cells[1])
        elif above is not None and _BUS.fullmatch(cells[1]):
            chips.append(_read_chip(*above, cells[0], cells[2]))
            above = None
    return chips


def _read_chip(card: int, name: str, health: str, numbers: str, usage: str) -> NpuChip:
    words = numbers.split()
    device = int(words[1]) if len(words) > 1 and words[1].isdecimal() else card
    pairs = [(int(used), int(total)) for used, total in _USAGE.findall(usage)]
    if not pairs or not pairs[-1][1]:
        return NpuChip(card, device, name, health)
    used, total = pairs[-1]
    return NpuChip(card, device, name, health, used * 2**20, total * 2**20)
