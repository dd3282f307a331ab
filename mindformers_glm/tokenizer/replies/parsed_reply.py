"""What a model's answer consists of."""

from collections.abc import Sequence
from dataclasses import dataclass

from mindformers_glm.tokenizer.tool_call import ToolCall


@dataclass(frozen=True)
class ParsedReply:
    """An answer, or what a piece of its text adds to one: the sum of the pieces is the answer.

    Attributes:
        content: what is said to the user; a call that is malformed stays in it.
        reasoning: what was thought before, without its tags and the blanks around it.
        tool_calls: the calls made, in their order; a piece only has complete ones.
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
            tuple(call for piece in pieces for call in piece.tool_calls),
        )

    def __bool__(self) -> bool:
        """Whether there is anything in it."""
        return bool(self.content or self.reasoning or self.tool_calls)
