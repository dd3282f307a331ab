"""An answer as a row of blocks (thoughts, texts, calls), the way two of the APIs show it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from mindformers_glm.serving.server.answer_parts import CallPart, Part

Kind = Literal["reasoning", "text", "call"]
Change = Literal["begin", "grow", "end"]


@dataclass
class Block:
    """One block; `call` has the name and the id of a call, whose arguments are the text."""

    kind: Kind
    index: int
    call: CallPart | None = None
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self.pieces)


class Blocks:
    """The blocks of one answer, while it grows."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._is_open = False

    def add(self, part: Part) -> Iterator[tuple[Change, Block, str]]:
        """What a part changes, in its order; a piece of text comes with "grow"."""
        for kind, text in (("reasoning", part.reasoning), ("text", part.content)):
            if text:
                yield from self._grow(kind, text)  # type: ignore[arg-type]
        for call in part.calls:
            if call.id:
                yield from self.end()
                yield self._begin("call", call)
            if call.arguments:
                yield self._append(call.arguments)

    def end(self) -> Iterator[tuple[Change, Block, str]]:
        """End the last block, if one is open."""
        if self._is_open:
            self._is_open = False
            yield "end", self.all[-1], ""

    def _grow(self, kind: Kind, text: str) -> Iterator[tuple[Change, Block, str]]:
        if not self._is_open or self.all[-1].kind != kind:
            yield from self.end()
            yield self._begin(kind, None)
        yield self._append(text)

    def _begin(self, kind: Kind, call: CallPart | None) -> tuple[Change, Block, str]:
        self.all.append(Block(kind, len(self.all), call))
        self._is_open = True
        return "begin", self.all[-1], ""

    def _append(self, text: str) -> tuple[Change, Block, str]:
        self.all[-1].pieces.append(text)
        return "grow", self.all[-1], text
