"""What a request has generated: kept once, and shared by all of its outputs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

from mindformers_glm.engine.logprobs import TokenLogprobs
from mindformers_glm.tokenizer.replies import ASSISTANT_TOKEN, ParsedReply

T = TypeVar("T")


class SpecialMark(NamedTuple):
    """A special token within an answer.

    Attributes:
        place: where in the text it stands; may lie behind what there is of the text so far.
        name: as the vocabulary writes it.
        length: characters of the text that are its name; 0 where it is not shown.
    """

    place: int
    name: str
    length: int


class ListView(Generic[T]):
    """The items that a list has now. The list may only grow: so nothing has to be copied."""

    def __init__(self, items: list[T]) -> None:
        self._items = items
        self._length = len(items)

    def __len__(self) -> int:
        return self._length

    def since(self, start: int) -> list[T]:
        """Return the items from the index `start` on; costs what it returns."""
        return self._items[start : self._length]

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return ListView, (self.since(0),)  # a copy takes none of the items that came later


@dataclass(frozen=True, eq=False, repr=False)
class Answer:
    """An answer as it stood after one step; making it costs the same however long it is.

    A whole (`token_ids`, `text`, `turn_starts`, `reply`, `logprobs`) is built when it is first
    asked for.

    Attributes:
        tokens, pieces: what RequestOutput calls token_ids and text; each output of a request adds
            one piece of text.
        marks: the special tokens in it, in their order.
        reply_pieces: their sum is the reply; None where the answer is not told apart.
        token_logprobs: of each token; None where they were not asked for.
    """

    tokens: ListView[int]
    pieces: ListView[str]
    marks: ListView[SpecialMark]
    reply_pieces: ListView[ParsedReply] | None = None
    token_logprobs: ListView[TokenLogprobs] | None = None

    @cached_property
    def token_ids(self) -> list[int]:
        return self.tokens.since(0)

    @cached_property
    def text(self) -> str:
        return "".join(self.pieces.since(0))

    @cached_property
    def turn_starts(self) -> tuple[int, ...]:
        return tuple(mark.place for mark in self.marks.since(0) if mark.name == ASSISTANT_TOKEN)

    @cached_property
    def reply(self) -> ParsedReply | None:
        return None if self.reply_pieces is None else ParsedReply.join(self.reply_pieces.since(0))

    @cached_property
    def logprobs(self) -> list[TokenLogprobs] | None:
        return None if self.token_logprobs is None else self.token_logprobs.since(0)

    def _whole(self) -> tuple[Any, ...]:
        return self.token_ids, self.text, self.turn_starts, self.reply, self.logprobs

    def __eq__(self, other: object) -> bool:
        return self._whole() == other._whole() if isinstance(other, Answer) else NotImplemented

    def __repr__(self) -> str:
        names = ("token_ids", "text", "turn_starts", "reply", "logprobs")
        values = zip(names, self._whole(), strict=True)
        return f"Answer({', '.join(f'{name}={value!r}' for name, value in values)})"
