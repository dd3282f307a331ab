"""The releases that this project is written for and was run on: the one table of them."""

import re
from dataclasses import dataclass

PYTHON_VERSIONS = ("3.10", "3.11")  # those MindSpore 2.7.1 has wheels for, from 3.10 on


@dataclass(frozen=True)
class VersionSet:
    """Releases that belong together.

    Attributes:
        packages: Python package -> its version; "<2" and the like where it is a limit.
        cann: the toolkit on Ascend.
        hdk: Ascend's driver and firmware.
        note: what was run on them.
    """

    packages: dict[str, str]
    cann: str
    hdk: str
    note: str


# MindSpore Transformers 1.7.0: VERSION_MAP.json and what its wheel requires. The GLM-4 card names
# the same CANN and HDK.
PINNED = VersionSet(
    packages={
        "mindspore": "2.7.1",
        "mindformers": "1.7.0",
        "transformers": "4.51.3",
        "tokenizers": "0.21.0",
        "numpy": "<2",
    },
    cann="8.3.RC1",
    hdk="25.3.RC1",
    note="all tests, on the CPU",
)
# A further release that was tried is a row here: scripts/check_versions.py tries it, and
# docs/versions.md says what was run. Their VERSION_MAP.json and wheels as above.
_CHECKED = "parts of the tests, on the CPU (versions.md)"
TESTED = (
    PINNED,
    VersionSet(
        packages=PINNED.packages
        | {
            "mindspore": "2.7.2",
            "mindformers": "1.8.0",
            "transformers": "4.57.1",
            "tokenizers": "0.22.2",
        },
        cann="8.5.0",
        hdk="25.5.0",
        note=_CHECKED,
    ),
    VersionSet(
        packages=PINNED.packages
        | {
            "mindspore": "2.9.0",
            "mindformers": "1.9.0",
            "transformers": "4.57.1",
            "tokenizers": "0.22.2",
        },
        cann="9.0.0",
        hdk="26.0.RC1",
        note=_CHECKED,
    ),
)


def find_set(mindformers: str | None) -> VersionSet | None:
    """The tested set of a release of MindSpore Transformers; None where it is in none."""
    return next((row for row in TESTED if row.packages["mindformers"] == mindformers), None)


def matches(found: str, wanted: str) -> bool:
    """Whether a version is the wanted one, or below it where that is a limit ("<2")."""
    if wanted.startswith("<"):
        return parse_version(found) < parse_version(wanted[1:])
    return found.lower() == wanted.lower()


def parse_version(text: str) -> tuple[tuple[int, int], ...]:
    """A version to compare by.

    Example: 25.2.0 < 25.3.RC1 = 25.3.rc1 < 25.3.rc1.2 < 25.3 < 25.3.0
    """
    pieces = re.findall(r"(rc|alpha|beta|b)?(\d+)", text.lower())
    # Where one ends, a candidate of the other comes before it and a further number behind it.
    return (*((0 if word else 1, int(number)) for word, number in pieces), (1, -1))
