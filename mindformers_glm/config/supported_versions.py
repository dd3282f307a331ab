"""The versions that this project is written for and was run on: the one table of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class VersionSet:
    """Releases that belong together.

    Attributes:
        packages: Python package -> its version, the pins of MindSpore Transformers among them.
        cann: the toolkit on Ascend.
        hdk: Ascend's driver and firmware.
    """

    packages: dict[str, str]
    cann: str
    hdk: str


# MindSpore Transformers' own table for 1.7.0 and what its wheel requires; the GLM-4 card names the
# same CANN and HDK.
PINNED = VersionSet(
    packages={
        "mindformers": "1.7.0",
        "mindspore": "2.7.1",
        "transformers": "4.51.3",
        "tokenizers": "0.21.0",
    },
    cann="8.3.RC1",
    hdk="25.3.RC1",
)
PYTHON_VERSIONS = ("3.10", "3.11")
