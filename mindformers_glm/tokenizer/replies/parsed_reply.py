"""What a model's answer consists of."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mindformers_glm.tokenizer.tool_call import ToolCall


@dataclass(frozen=True)
class ParsedReply:
    """An answer, or what a piece of its text adds to one: the sum of the pieces is the answer.

    Attributes:
        content: what is said to the user; a call that is malformed stays in it.
        reasoning: what was thought before, without its tags and the blanks around it.
        tool_calls: the calls made, in their order. A long one may begin in one piece and grow in
            later ones, by calls without a name.
    """

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()

    def __add__(self, piece: "ParsedReply") -> "ParsedReply":
        return self.join((self, piece))

    @classmethod
    def join(cls, pieces: Sequence["ParsedReply"]) -> "ParsedReply":
        """Return the sum of pieces, each copied once."""
        return cls(
            "".join(piece.content for piece in pieces),
            "".join(piece.reasoning for piece in pieces),
            join_calls(call for piece in pieces for call in piece.tool_calls),
        )

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.content or self.reasoning or self.tool_calls)


def join_calls(pieces: Iterable[ToolCall]) -> tuple[ToolCall, ...]:
    """Return whole calls: a piece without a name belongs to the call before it.

    A piece that is the first of all may have no name either: it stays as it is.
    """
    calls: list[ToolCall] = []
    arguments: list[list[str]] = []
    for piece in pieces:
        if piece.name or not calls:
            calls.append(piece)
            arguments.append([piece.arguments])
        else:
            calls[-1] = replace(calls[-1], is_open=piece.is_open)
            arguments[-1].append(piece.arguments)
    pairs = zip(calls, arguments, strict=True)
    return tuple(replace(call, arguments="".join(texts)) for call, texts in pairs)
