"""Reads an answer as it comes out of the engine: thoughts, text and tool calls."""

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import Any

from mindformers_glm.engine.answer import ListView
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.tokenizer import GlmTokenizer
from mindformers_glm.tokenizer.chat import offered_tools
from mindformers_glm.tokenizer.replies import ParsedReply, ReplyParser, check_parser_names

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
        is_continued: bool = False,
    ) -> "ReplyReader":
        """Return what reads the answer to one prompt.

        Args:
            prompt: the messages, which may bring tools, or the text of the only one.
            is_continued: the answer goes on with the last message.
        """
        messages: Items[Any] = [] if isinstance(prompt, str) else prompt
        return ReplyReader(
            ReplyParser(
                self.tool_calls,
                offered_tools(messages, tools),
                self.reasoning,
                starts_in_reasoning=_ends_in_thoughts(tokenizer, prompt_token_ids, is_continued),
                is_continued=is_continued,
            )
        )


class ReplyReader:
    """Adds `reply` and `delta_reply` to the outputs of one request.

    Args:
        parser: new; fits the model and the prompt.
    """

    def __init__(self, parser: ReplyParser) -> None:
        self._parser = parser
        self._reply_pieces: list[ParsedReply] = []
        # Read so far:
        self._num_pieces = 0
        self._num_chars = 0
        self._num_turns = 0

    def read(self, output: RequestOutput) -> RequestOutput:
        """Return the output with what is told apart of it; outputs in their order, any skipped."""
        answer = output.answer
        text = "".join(answer.pieces.since(self._num_pieces))
        self._num_pieces = len(answer.pieces)
        end = self._num_chars + len(text)
        delta = ParsedReply()
        for place in answer.turns.since(self._num_turns):
            if place > end:
                break  # text before it is held back, or was cut off by a stop string
            cut = len(text) - (end - place)
            delta += self._parser.feed(text[:cut]) + self._parser.start_turn()
            text = text[cut:]
            self._num_turns += 1
        self._num_chars = end
        delta += self._parser.feed(text)
        if output.finished:
            delta += self._parser.flush()
        self._reply_pieces.append(delta)
        answer = replace(answer, reply_pieces=ListView(self._reply_pieces))
        return replace(output, answer=answer, delta_reply=delta)


def _ends_in_thoughts(tokenizer: GlmTokenizer, token_ids: Items[int], is_continued: bool) -> bool:
    """Whether <think> is all that stands behind the last role token; or, continued, is open."""
    tail: list[int] = []
    for token_id in reversed(token_ids):
        if token_id in tokenizer.special_token_ids or (len(tail) > 16 and not is_continued):
            break
        tail.append(token_id)
    text = tokenizer.decode(reversed(tail))
    if is_continued:
        return text.rfind("<think>") > text.rfind("</think>")
    return text.strip() == "<think>"
