"""Markdown of answers for the page: HTML in it is shown as it is written, never obeyed.

Read with gradio 6.17.3, which reads Markdown with marked and formulas with KaTeX.
"""

import re
from itertools import groupby

# A fence, and what stands before it: quotes and items of lists. `x ``` y` is none.
_FENCE = re.compile(
    r"(?P<before>[ >]*(?:(?:[-*+]|\d{1,9}[.)]) [ >]*)*)(?P<fence>`{3,}(?!.*`)|~{3,})"
)
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])(?:\s+|$)")
# What is read before a code span or ends one: a backslash's letter, an address, the aim of a link.
_NO_CODE = r"\\[\\`]|\w+://[^\s<]*|\]\([^)\n]*\)"
# A code span that goes on in the next line is seldom, and taken for none.
_SPAN = r"(?<!`)(?P<ticks>`+)(?!`)(?P<code>.+?)(?<!`)(?P=ticks)(?!`)"
_FORMULA = r"(?P<formula>\$\$[^`]+?\$\$|\\\([^`]+?\\\)|\\\[[^`]+?\\\])"
_INLINE = re.compile(f"{_NO_CODE}|{_SPAN}|{_FORMULA}|<")


def escape_html(text: str) -> str:
    """Spell "<" wherever a page would take what follows for HTML; Markdown stays what it is.

    "a <b>" becomes "a &lt;b>". Code, where a "<" is shown as it stands, is left alone. In a
    formula, where a blank means nothing, "a<b" becomes "a< b". Where it is not sure whether
    something is code, it is taken for none.
    """
    blocks = _Blocks()
    parts = []
    for is_code, lines in groupby(text.splitlines(keepends=True), blocks.is_code):
        part = "".join(lines)
        parts.append(part if is_code else _INLINE.sub(_escape, part))
    return "".join(parts)


def _escape(match: re.Match[str]) -> str:
    if match["code"] is not None:
        return match[0]
    if match["formula"] is not None:
        return re.sub(r"<(?=[A-Za-z/!?])", "< ", match[0])
    return match[0].replace("<", "&lt;")


class _Blocks:
    """Tells lines of blocks of code from others, one line after the other."""

    def __init__(self) -> None:
        self._fence = self._before = ""  # of the block that is open, and before each of its lines
        self._column = 0  # where the text of the item of a list begins; 0: in no list
        self._may_indent = True  # whether a line that begins with four blanks is code

    def is_code(self, line: str) -> bool:
        """Whether the next line is one of a block of code."""
        if self._fence and self._is_inside(line):
            if re.fullmatch(rf"[ >]*{self._fence[0]}{{{len(self._fence)},}}\s*", line):
                self._fence, self._may_indent = "", True
            return True
        self._fence = ""
        self._enter_item(line)
        is_indented = line.startswith(("    ", "\t"))
        if not line.strip():
            self._may_indent = True
            return False
        if (opening := _FENCE.match(line)) and self._opens_block(opening["before"]):
            self._fence = opening["fence"]
            self._before = re.sub(r"[^ >]", " ", opening["before"])
            return True
        self._may_indent = self._may_indent and is_indented and not self._column
        return self._may_indent

    def _is_inside(self, line: str) -> bool:
        if ">" in self._before:
            return line.startswith(self._before.rstrip())
        return not line.strip() or line.startswith(self._before)

    def _enter_item(self, line: str) -> None:
        if item := _ITEM.match(line):
            self._column = item.end()
        elif line.strip():
            self._column = min(self._column, len(line) - len(line.lstrip()))

    def _opens_block(self, before: str) -> bool:
        """Four blanks more than the text around, and it is text or a block of its own."""
        is_nested = before.strip(" ") != ""
        return is_nested or len(before) < self._column + 4
