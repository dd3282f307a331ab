"""Write the tables of docs/configuration.md, docs/python_api.md and docs/doctor.md anew.

    python scripts/write_configuration_docs.py

They follow from the tables of settings, of versions and of variables, and from the signatures and
docstrings of `LLM` and `SamplingParams`. A table stands between `<!-- table: NAME -->` and
`<!-- end of table -->`; the text around these is written by hand. tests/unit/test_docs.py fails
while a table is outdated.
"""

import inspect
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from mindformers_glm import LLM, SamplingParams  # noqa: E402  needs the line above
from mindformers_glm.config.known_variables import KNOWN_VARIABLES  # noqa: E402
from mindformers_glm.config.setting import Setting  # noqa: E402
from mindformers_glm.config.settings_table import SETTINGS  # noqa: E402
from mindformers_glm.config.supported_versions import PINNED, TESTED  # noqa: E402

DOCS = ROOT / "docs"
_TABLE = re.compile(r"(<!-- table: (.+) -->\n)(?:.*\n)*?(<!-- end of table -->\n)")
_OWNERS = (LLM, SamplingParams)
_ARGUMENT = re.compile(r"^    ([\w, ]+?): (.*(?:\n {8}.*)*)", re.MULTILINE)


def tables_by_page() -> dict[str, dict[str, str]]:
    """Markdown of each table, by the name of its page and its own."""
    settings = {section: _settings_table(rows) for section, rows in SETTINGS.sections.items()}
    arguments = {f"arguments of {owner.__name__}": _arguments(owner) for owner in _OWNERS}
    doctor = {"tested releases": _versions_table(), "variables": _variables_table()}
    return {"configuration.md": settings, "python_api.md": arguments, "doctor.md": doctor}


def write_tables(text: str, tables: Mapping[str, str]) -> str:
    """The page with each table as it should be.

    Raises:
        ValueError: a table has no place on the page, or two.
    """
    places = [match[2] for match in _TABLE.finditer(text)]
    if sorted(places) != sorted(tables):
        raise ValueError(
            f"The page has places for {', '.join(places)}, and there are {', '.join(tables)}: they "
            "must be the same."
        )
    return _TABLE.sub(lambda match: match[1] + tables[match[2]] + match[3], text)


def _versions_table() -> str:
    heads = [*PINNED.packages, "CANN", "HDK", "what ran"]
    rows = [[*row.packages.values(), row.cann, row.hdk, row.note] for row in TESTED]
    return _markdown([heads, *rows])


def _variables_table() -> str:
    rows = [
        [f"`{row.name}`", _one_line(row.effect), row.reader, " ".join(row.devices) or "nowhere"]
        for row in KNOWN_VARIABLES
    ]
    return _markdown([["variable", "what it does", "read by", "effect on"], *rows])


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table; the first row is its head."""
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    return "".join([lines[0], f"|{'---|' * len(rows[0])}\n", *lines[1:]])


def _arguments(owner: type) -> str:
    """The signature, and what the docstring says of each argument that has a default."""
    told = dict(_ARGUMENT.findall((inspect.getdoc(owner) or "").partition("Args:\n")[2]))
    arguments = inspect.signature(owner).parameters.values()
    required = [arg.name for arg in arguments if arg.default is arg.empty]
    defaults = {
        arg.name: repr(arg.default).replace("'", '"')
        for arg in arguments
        if arg.name not in required
    }
    given = [f"{name}={value}" for name, value in defaults.items()]
    call = ", ".join([*required, "*", *given] if required else given)
    signature = textwrap.fill(
        f"{owner.__name__}({call})", 100, initial_indent=" " * 4, subsequent_indent=" " * 8
    )
    # Names that share a line of the docstring mean the same.
    meanings = {name: text for names, text in told.items() for name in names.split(", ")}
    lines = [
        f"| `{name}` | `{value}` | {_one_line(meanings[name])} |"
        for name, value in defaults.items()
    ]
    return "\n".join(
        [signature, "", "| argument | default | meaning |", "|---|---|---|", *lines, ""]
    )


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _settings_table(settings: Sequence[Setting]) -> str:
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
    elsewhere = f": {setting.without_effect}" if setting.without_effect else ""
    said = (
        setting.help,
        f"takes effect on {setting.backend} only{elsewhere}" if setting.backend else "",
        f"changes nothing{elsewhere}" if elsewhere else "",
        f"{allowed}: {setting.because}" if setting.only else "",
        "a label",
    )
    text = next(filter(None, said))
    if setting.help and setting.backend:
        text += f" (on {setting.backend} only)"
    return _one_line(text)


def _shown(value: object) -> str:
    return " ".join(value) if isinstance(value, tuple) else str(value)


if __name__ == "__main__":
    for name, tables in tables_by_page().items():
        page = DOCS / name
        page.write_text(write_tables(page.read_text(encoding="utf-8"), tables), encoding="utf-8")
