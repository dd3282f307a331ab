"""A model's answer to thoughts, text and tool calls, whole or while it is being written."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.tokenizer.chat.messages import Tool, tool_name
from mindformers_glm.tokenizer.chat.official_prompts import BUILT_IN_TOOLS, RUMINATION_TOOLS
from mindformers_glm.tokenizer.replies.call_candidates import (
    CallCandidate,
    JsonObjectCall,
    NamedJsonCall,
    PythonCall,
)
from mindformers_glm.tokenizer.replies.call_splitter import CallPlace, CallSplitter
from mindformers_glm.tokenizer.replies.parsed_reply import ParsedReply
from mindformers_glm.tokenizer.replies.placeholder import PlaceholderFiller
from mindformers_glm.tokenizer.replies.reasoning import CLOSE_TAG, OPEN_TAG, ReasoningSplitter


@dataclass(frozen=True)
class CallSyntax:
    """How a generation of the family writes its messages and calls.

    Attributes:
        candidate: reads a possible call; None where the model was not trained to call tools.
        has_role_line, drops_blanks: see `CallSplitter`.
        fixed_tools: tools it may call without being offered any.
        text_tools: built-in tools that take plain text, where they are offered.
        has_placeholder: it writes a placeholder for a date.
    """

    candidate: type[CallCandidate] | None = None
    has_role_line: bool = True
    drops_blanks: bool = False
    fixed_tools: tuple[str, ...] = ()
    text_tools: tuple[str, ...] = ()
    has_placeholder: bool = False


_CHATGLM2 = CallSyntax(drops_blanks=True, has_placeholder=True)
_CHATGLM3 = CallSyntax(PythonCall, drops_blanks=True, has_placeholder=True)
_GLM4 = CallSyntax(NamedJsonCall, text_tools=tuple(BUILT_IN_TOOLS))
_RUMINATION = CallSyntax(
    JsonObjectCall, fixed_tools=tuple(tool["name"] for tool in RUMINATION_TOOLS)
)

# The special token with which a model of the family begins a message, and those around a call in
# vocabularies that have them; all others mean nothing here.
ASSISTANT_TOKEN = "<|assistant|>"
_CALL_TAG, _CALL_END_TAG = "<tool_call>", "</tool_call>"

# Our own names first in each row, then those that MindIE's servers know.
TOOL_CALL_PARSERS = {
    "none": CallSyntax(has_role_line=False),
    **dict.fromkeys(("chatglm2", "chatglm2_6b", "chatglm_v2", "chatglm_v2_6b"), _CHATGLM2),
    **dict.fromkeys(("chatglm3", "chatglm3_6b", "chatglm_v3", "chatglm_v3_6b"), _CHATGLM3),
    **dict.fromkeys(("glm4", "glm_4", "glm_4_9b", "chatglm4_9b", "chatglm_v4_9b"), _GLM4),
    "glm_z1_rumination": _RUMINATION,
}
# All think alike; deepseek_r1 is how vLLM's users know the form.
REASONING_PARSERS = ("none", "glm_z1", "deepseek_r1")


class ReplyParser:
    """Reads one answer piece by piece; the sum of what it returns is the parsed answer.

    The sum does not depend on where the text is cut. Text that may be part of a call or a tag is
    held back until that is certain. A malformed call, one of a tool that was not offered, and half
    a call at the end are content.

    Args:
        tool_call_parser: a key of `TOOL_CALL_PARSERS`.
        tools: descriptions of the tools that were offered.
        reasoning_parser: one of `REASONING_PARSERS`.
        starts_in_reasoning: the prompt ended with <think>.
        calls_tools: False: nothing is taken for a call.
        special_tokens: names of the vocabulary's special tokens. A tag among them counts where
            `feed_token` brings it, and in the text it is text.
        is_continued: the answer goes on with a message that the prompt began.
    Raises:
        ConfigError: there is no such parser.
    """

    def __init__(
        self,
        tool_call_parser: str,
        tools: Sequence[Tool] = (),
        reasoning_parser: str = "none",
        *,
        starts_in_reasoning: bool = False,
        calls_tools: bool = True,
        special_tokens: Collection[str] = (),
        is_continued: bool = False,
    ) -> None:
        check_parser_names(tool_call_parser, reasoning_parser)
        syntax = TOOL_CALL_PARSERS[tool_call_parser]
        self._reasoning = (
            None
            if reasoning_parser == "none"
            else ReasoningSplitter(starts_inside=starts_in_reasoning, token_tags=special_tokens)
        )
        names = frozenset({*map(tool_name, tools), *syntax.fixed_tools})
        text_names = frozenset(
            tool["type"] for tool in tools if tool.get("type") in syntax.text_tools
        )
        bare_names = frozenset(tool_name(tool) for tool in tools if not _needs_arguments(tool))
        new_candidate = None
        if syntax.candidate is not None and names and calls_tools:
            new_candidate = partial(
                _new_candidate, syntax.candidate, names, text_names, bare_names - text_names
            )
        self._calls = CallSplitter(
            new_candidate,
            has_role_line=syntax.has_role_line,
            drops_blanks=syntax.drops_blanks,
            is_continued=is_continued,
        )
        self._placeholder = PlaceholderFiller() if syntax.has_placeholder else None

    def feed(self, text: str) -> ParsedReply:
        """Take the next piece of text."""
        if self._reasoning is None:
            return self._fill(self._calls.feed(text))
        reasoning, answer = self._reasoning.feed(text)
        return self._fill(ParsedReply(reasoning=reasoning) + self._calls.feed(answer))

    def feed_token(self, name: str) -> ParsedReply:
        """Take a special token of the answer, in its place between the pieces of text."""
        if name == ASSISTANT_TOKEN:
            return self.start_turn()
        if name in (OPEN_TAG, CLOSE_TAG) and self._reasoning is not None:
            reasoning, answer = self._reasoning.feed_token(name)
            return self._fill(ParsedReply(reasoning=reasoning) + self._calls.feed(answer))
        if name in (_CALL_TAG, _CALL_END_TAG):
            return self._fill(self._calls.mark_call(begins=name == _CALL_TAG))
        return ParsedReply()

    def start_turn(self) -> ParsedReply:
        """Another assistant message begins: the model wrote <|assistant|>, which is no text."""
        return self._fill(self._flush_reasoning() + self._calls.start_turn())

    def flush(self, *, is_complete: bool = False) -> ParsedReply:
        """Return what is held back when the answer is over.

        Args:
            is_complete: the model has ended it; else it may have been cut off, and a tool's name
                alone is no call.
        """
        piece = self._fill(self._flush_reasoning() + self._calls.flush(is_complete=is_complete))
        rest = "" if self._placeholder is None else self._placeholder.flush()
        return piece + ParsedReply(rest)

    def _flush_reasoning(self) -> ParsedReply:
        if self._reasoning is None:
            return ParsedReply()
        reasoning, answer = self._reasoning.flush()
        return ParsedReply(reasoning=reasoning) + self._calls.feed(answer)

    def _fill(self, piece: ParsedReply) -> ParsedReply:
        if self._placeholder is None:
            return piece
        return replace(piece, content=self._placeholder.feed(piece.content))


def parse_reply(text: str, parser: ReplyParser, turn_starts: Sequence[int] = ()) -> ParsedReply:
    """Parse a whole answer.

    Args:
        turn_starts: places in the text, ascending, at which the model wrote <|assistant|>.
    """
    reply = ParsedReply()
    start = 0
    for place in turn_starts:
        reply += parser.feed(text[start:place]) + parser.start_turn()
        start = place
    return reply + parser.feed(text[start:]) + parser.flush()


def check_parser_names(tool_call_parser: str, reasoning_parser: str) -> None:
    """Refuse names that do not exist.

    Raises:
        ConfigError: there is no such parser.
    """
    for kind, name, names in (
        ("tool_call_parser", tool_call_parser, TOOL_CALL_PARSERS),
        ("reasoning_parser", reasoning_parser, REASONING_PARSERS),
    ):
        if not isinstance(name, str) or name not in names:
            raise ConfigError(f"{kind} must be one of {', '.join(names)}, got {name!r}.")


def _new_candidate(
    candidate: type[CallCandidate],
    names: frozenset[str],
    text_names: frozenset[str],
    bare_names: frozenset[str],
    place: CallPlace,
) -> CallCandidate:
    if place.is_object:
        return JsonObjectCall(names)
    # Plain text is a call only by the tool's name on the role's own line.
    return candidate(
        names, text_names if place.begins_message else (), bare_names if place.is_named else ()
    )


def _needs_arguments(tool: Tool) -> bool:
    """Whether a description says that the tool cannot be called with nothing."""
    function = tool.get("function")
    parameters = (function if isinstance(function, Mapping) else tool).get("parameters")
    return isinstance(parameters, Mapping) and bool(parameters.get("required"))
