"""Reads an answer as it comes out of the engine: thoughts, text and tool calls."""

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import Any

from mindformers_glm.core.errors import PromptError
from mindformers_glm.engine.answer import ListView
from mindformers_glm.engine.answer_grammar import AnswerStart, start_with_thoughts
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.thinking_limit import ThinkingMarks, mark_thoughts
from mindformers_glm.tokenizer import GlmTokenizer
from mindformers_glm.tokenizer.chat import offered_tools
from mindformers_glm.tokenizer.replies import (
    ASSISTANT_TOKEN,
    CLOSE_TAG,
    OPEN_TAG,
    TOOL_CALL_PARSERS,
    CallRules,
    ParsedReply,
    ReplyParser,
    ToolCall,
    check_parser_names,
    write_call_rules,
)

_AUTO = "auto"


@dataclass(frozen=True)
class ReplyParsers:
    """The parsers that read the answers to conversations, by name.

    Args:
        tool_calls: a name in `TOOL_CALL_PARSERS`, or "auto".
        reasoning: a name in `REASONING_PARSERS`, or "auto".
    Raises:
        ConfigError: there is no such parser.
    """

    tool_calls: str
    reasoning: str

    def __post_init__(self) -> None:
        names = ("none" if name == _AUTO else name for name in (self.tool_calls, self.reasoning))
        check_parser_names(*names)

    def resolve(self, detected: tuple[str, str]) -> "ReplyParsers":
        """Return the same with what was detected in the place of "auto"."""
        tool_calls, reasoning = detected
        return ReplyParsers(
            tool_calls if self.tool_calls == _AUTO else self.tool_calls,
            reasoning if self.reasoning == _AUTO else self.reasoning,
        )

    def new_reader(
        self,
        tokenizer: GlmTokenizer,
        prompt_token_ids: Items[int],
        prompt: str | Items[Any],
        tools: Items[Mapping[str, Any]] | None,
        *,
        calls_tools: bool = True,
        is_continued: bool = False,
        one_call: bool = False,
    ) -> "ReplyReader":
        """Return what reads the answer to one prompt.

        Args:
            prompt: the messages, which may bring tools, or the text of the only one.
            calls_tools: False: nothing is taken for a call.
            is_continued: the answer goes on with the last message.
            one_call: calls behind the first are left out.
        """
        messages: Items[Any] = [] if isinstance(prompt, str) else prompt
        return ReplyReader(
            ReplyParser(
                self.tool_calls,
                offered_tools(messages, tools),
                self.reasoning,
                starts_in_reasoning=_ends_in_thoughts(tokenizer, prompt_token_ids, is_continued),
                calls_tools=calls_tools,
                is_continued=is_continued,
                special_tokens=frozenset(tokenizer.special_token_names.values()),
            ),
            one_call=one_call,
        )

    def start_of_answer(
        self, tokenizer: GlmTokenizer, prompt_token_ids: Items[int], *, is_continued: bool = False
    ) -> AnswerStart:
        """Return what comes before the content of an answer to a conversation."""
        ids = tokenizer.vocabulary.special_tokens.ids
        syntax = TOOL_CALL_PARSERS[self.tool_calls]
        lead = ""
        if is_continued:
            pass
        elif syntax.drops_blanks:
            lead = r"(/ ?\n ?| /)?"
        elif tokenizer.vocabulary.has_dummy_prefix:
            lead = '" "?'
        elif syntax.has_role_line and prompt_token_ids[-1] == ids.get(ASSISTANT_TOKEN):
            lead = '"\\n"'
        is_thinking = _ends_in_thoughts(tokenizer, prompt_token_ids, is_continued)
        if self.reasoning == "none" or (is_continued and not is_thinking):
            return AnswerStart(lead)
        return start_with_thoughts(
            lead,
            is_thinking=is_thinking,
            opening_id=ids.get(OPEN_TAG),
            closing_id=ids.get(CLOSE_TAG),
        )

    def marks_of_thoughts(
        self, tokenizer: GlmTokenizer, prompt_token_ids: Items[int], *, is_continued: bool
    ) -> ThinkingMarks:
        """Return how the thoughts of an answer are marked.

        Args:
            is_continued: the prompt may have begun thoughts and gone on with them.
        Raises:
            PromptError: the model's thoughts are not known.
        """
        if self.reasoning == "none":
            raise PromptError(
                "thinking_token_budget limits thoughts, and this model is not known to have any: "
                "leave it out, or set reasoning_parser."
            )
        starts_inside = _ends_in_thoughts(tokenizer, prompt_token_ids, is_continued)
        return mark_thoughts(tokenizer, starts_inside=starts_inside)

    def rules_of_calls(
        self,
        tokenizer: GlmTokenizer,
        tools: Items[Mapping[str, Any]],
        *,
        name: str | None = None,
        is_parallel: bool = True,
    ) -> CallRules:
        """Return how the model calls these tools: see `write_call_rules`."""
        assistant_id = tokenizer.vocabulary.special_tokens.ids.get(ASSISTANT_TOKEN)
        separator = '"\\n"' if assistant_id is None else f"<[{assistant_id}]>"
        return write_call_rules(
            self.tool_calls, tools, name=name, is_parallel=is_parallel, separator=separator
        )

    @property
    def knows_calls(self) -> bool:
        """Whether the model was trained to call tools in a form that is known."""
        return TOOL_CALL_PARSERS[self.tool_calls].candidate is not None


class ReplyReader:
    """Adds `reply` and `delta_reply` to the outputs of one request.

    Args:
        parser: new; fits the model and the prompt.
        one_call: calls behind the first are left out.
    """

    def __init__(self, parser: ReplyParser, *, one_call: bool = False) -> None:
        self._parser = parser
        self._one_call = one_call
        self._num_calls = 0
        self._last: RequestOutput | None = None  # as it was given, and what was made of it
        self._last_read: RequestOutput | None = None
        self._reply_pieces: list[ParsedReply] = []
        self._text = ""  # not read yet: a name may be incomplete
        # Read so far:
        self._num_pieces = 0
        self._num_chars = 0
        self._num_marks = 0

    def read(self, output: RequestOutput) -> RequestOutput:
        """Return the output with what is told apart of it.

        In their order; any may be skipped, and the last one may come again.
        """
        if output is self._last and self._last_read is not None:  # another sample has grown
            if self._last_read.delta_reply:
                self._last_read = replace(self._last_read, delta_reply=ParsedReply())
            return self._last_read
        answer = output.answer
        self._text += "".join(answer.pieces.since(self._num_pieces))
        self._num_pieces = len(answer.pieces)
        end = self._num_chars + len(self._text)
        delta, place = ParsedReply(), end
        for mark in answer.marks.since(self._num_marks):
            place = mark.place
            # The text up to there is held back, or was cut off by a stop string.
            if place + mark.length > end:
                break
            delta += self._parser.feed(self._take(place)) + self._parser.feed_token(mark.name)
            self._take(place + mark.length)  # the name is no text, shown or not
            self._num_marks += 1
            place = end
        delta += self._parser.feed(self._take(end if output.finished else min(place, end)))
        if output.finished:
            # A stop text may have cut off what was to follow, as a length does.
            is_complete = output.finish_reason == "stop" and not isinstance(output.stop_reason, str)
            delta += self._parser.flush(is_complete=is_complete)
        if self._one_call:
            delta = replace(delta, tool_calls=tuple(filter(self._is_of_first, delta.tool_calls)))
        if delta:
            self._reply_pieces.append(delta)
        answer = replace(answer, reply_pieces=ListView(self._reply_pieces))
        self._last, self._last_read = output, replace(output, answer=answer, delta_reply=delta)
        return self._last_read

    def _is_of_first(self, call: ToolCall) -> bool:
        self._num_calls += bool(call.name)  # what a call grows by has none
        return self._num_calls <= 1

    def _take(self, end: int) -> str:
        """Return the text up to a place as read."""
        count = end - self._num_chars
        text, self._text = self._text[:count], self._text[count:]
        self._num_chars = end
        return text


def _ends_in_thoughts(tokenizer: GlmTokenizer, token_ids: Items[int], is_continued: bool) -> bool:
    """Whether <think> is all that stands behind the last role token; or, continued, is open.

    The tags are special tokens or text.
    """
    tail: list[int] = []
    names = tokenizer.special_token_names
    for token_id in reversed(token_ids):
        is_role = names.get(token_id) not in (None, OPEN_TAG, CLOSE_TAG)
        if is_role or (len(tail) > 16 and not is_continued):
            break
        tail.append(token_id)
    detokenizer = tokenizer.new_detokenizer(skip_special_tokens=False)
    text = "".join(map(detokenizer.feed, reversed(tail))) + detokenizer.flush()
    if is_continued:
        return text.rfind(OPEN_TAG) > text.rfind(CLOSE_TAG)
    return text.strip() == OPEN_TAG
