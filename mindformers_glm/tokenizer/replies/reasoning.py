"""Telling what a model thinks from what it says: `<think>...</think>` before the answer."""

from collections.abc import Collection
from typing import Literal

OPEN_TAG = "<think>"
CLOSE_TAG = "</think>"


class ReasoningSplitter:
    """Splits an answer into thoughts and what follows them, while it is being written.

    The answer begins inside the thoughts where the prompt ended with the opening tag (as
    GLM-Z1-0414's does), or begins with that tag. Else there are none, and a closing tag somewhere
    in the text is text. Blanks around the thoughts and the tags are dropped.

    Args:
        starts_inside: the prompt ended with the opening tag.
        token_tags: tags that are special tokens; in the text they mean nothing.
    """

    def __init__(self, *, starts_inside: bool, token_tags: Collection[str] = ()) -> None:
        self._starts_inside = starts_inside
        # What is looked for in the text; empty: nothing.
        self._open = "" if OPEN_TAG in token_tags else OPEN_TAG
        self._close = "" if CLOSE_TAG in token_tags else CLOSE_TAG
        self._state: Literal["start", "opened", "reasoning", "closed", "answer"] = "start"
        self._held = ""  # may be the beginning of a tag, or blanks before one

    def feed(self, text: str) -> tuple[str, str]:
        """Take the next piece of text and return what is certain of it: (thoughts, answer)."""
        self._held += text
        if self._state == "start":
            self._leave_start()
        if self._state == "opened" and self._skip_blanks():
            self._state = "reasoning"
        reasoning = self._take_reasoning() if self._state == "reasoning" else ""
        if self._state == "closed" and self._skip_blanks():
            self._state = "answer"
        answer = ""
        if self._state == "answer":
            answer, self._held = self._held, ""
        return reasoning, answer

    def feed_token(self, tag: str) -> tuple[str, str]:
        """Take a tag that is a special token, as `feed`; one that means nothing has no text."""
        thoughts = ""
        if tag == OPEN_TAG and self._state == "start" and not self._held.strip():
            self._state, self._held = "opened", ""
        elif tag == CLOSE_TAG and self.is_inside:
            thoughts = self._held.rstrip()
            self._state, self._held = "closed", ""
        return thoughts, ""

    def flush(self) -> tuple[str, str]:
        """Return what is held back, as `feed`: no more text comes, or another message begins."""
        held, self._held = self._held, ""
        is_reasoning = self.is_inside
        self._state = "answer"
        # Half a closing tag is part of the thoughts, blanks at their end are not.
        return (held.rstrip(), "") if is_reasoning else ("", held)

    @property
    def is_inside(self) -> bool:
        """Whether what comes next belongs to the thoughts, or ends them."""
        return self._state in ("opened", "reasoning") or (
            self._state == "start" and self._starts_inside
        )

    @property
    def is_behind(self) -> bool:
        """Whether the thoughts are over, or there are none."""
        return self._state in ("closed", "answer")

    @property
    def num_closing_characters(self) -> int:
        """How many characters the text so far has of a closing tag that it does not complete."""
        lengths = range(len(self._close) - 1, 0, -1)
        return next((n for n in lengths if self._held.endswith(self._close[:n])), 0)

    def _leave_start(self) -> None:
        text = self._held.lstrip()
        if self._open and text.startswith(self._open):
            self._state, self._held = "opened", text.removeprefix(self._open)
        elif not self._open.startswith(text):
            self._state = "opened" if self._starts_inside else "answer"

    def _skip_blanks(self) -> bool:
        self._held = self._held.lstrip()
        return self._held != ""

    def _take_reasoning(self) -> str:
        before, tag, after = self._held.partition(self._close or CLOSE_TAG)
        if tag and self._close:
            self._state, self._held = "closed", after
            return before.rstrip()
        shown = self._held.rstrip()
        for length in range(min(len(self._close) - 1, len(shown)), 0, -1):
            if self._close.startswith(shown[-length:]):
                shown = shown[:-length].rstrip()
                break
        self._held = self._held[len(shown) :]
        return shown
