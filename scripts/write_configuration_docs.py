"""Write the tables of settings in docs/configuration.md anew, from the table they are rows of.

    python scripts/write_configuration_docs.py

A table stands between `<!-- settings: SECTION -->` and `<!-- end of settings -->`; the text around
these is written by hand. tests/unit/test_docs.py fails while a table is outdated.
"""

import re
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mindformers_glm.config.setting import Setting  # noqa: E402  needs the line above
from mindformers_glm.config.settings_table import SETTINGS  # noqa: E402

PAGE = ROOT / "docs" / "configuration.md"
_TABLE = re.compile(r"(<!-- settings: (.+) -->\n)(?:.*\n)*?(<!-- end of settings -->\n)")


def write_tables(text: str) -> str:
    """The page with each table as it should be.

    Raises:
        ValueError: a section of the table of settings has no place on the page, or two.
    """
    places = [match[2] for match in _TABLE.finditer(text)]
    if sorted(places) != sorted(SETTINGS.sections):
        raise ValueError(
            f"{PAGE.name} has places for {', '.join(places)}, and there are settings for "
            f"{', '.join(SETTINGS.sections)}: they must be the same."
        )
    return _TABLE.sub(lambda match: match[1] + _table(SETTINGS.sections[match[2]]) + match[3], text)


def _table(settings: Sequence[Setting]) -> str:
    """Markdown; neighbours of which the same is said share a line."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for said, rows in groupby(settings, key=lambda row: (row.default_text, _meaning(row))):
        cells = (", ".join(map(_names, rows)), *said)
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "".join(f"{line}\n" for line in lines)


def _names(setting: Setting) -> str:
    # That a generation setting may stand in two more places is a sentence of the page.
    others = [name for name in setting.aliases if name.rpartition(".")[2] != setting.path]
    others += [f"--{option}" for option in setting.options]
    return f"`{setting.path}`" + (f" (`{'`, `'.join(others)}`)" if others else "")


def _meaning(setting: Setting) -> str:
    values = " or ".join(map(_shown, setting.only))
    allowed = f"{values} only" if values else "must be left out"
    said = (
        setting.help,
        f"changes nothing: {setting.without_effect}" if setting.without_effect else "",
        f"takes effect on {setting.backend} only" if setting.backend else "",
        f"{allowed}: {setting.because}" if setting.only else "",
        "a label",
    )
    text = next(filter(None, said))
    if setting.help and setting.backend:
        text += f" (on {setting.backend} only)"
    return text.replace("|", "\\|")


def _shown(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    PAGE.write_text(write_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
