"""An answer on the web page: shown as it comes, stopped by its visitor, and what is told of it."""

import html
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gradio as gr

from mindformers_glm.core.errors import GlmError
from mindformers_glm.serving.answer_clock import AnswerClock
from mindformers_glm.serving.chat.model import Piece, assistant_message
from mindformers_glm.serving.chat.server import ServerModel
from mindformers_glm.serving.web.conversation import Conversation, Entry, write_entries
from mindformers_glm.tokenizer.replies import ParsedReply

_SHOW_EVERY_S = 0.05  # each time the whole conversation is looked through for what is new


class Answers:
    """The answers under way, each of which can be stopped by its visitor."""

    def __init__(self) -> None:
        self._models: dict[str, ServerModel] = {}

    def begin(self, visitor: str, model: ServerModel) -> None:
        """Enter an answer; a visitor has one at a time."""
        self._models[visitor] = model

    def end(self, visitor: str) -> None:
        """Remove it."""
        self._models.pop(visitor, None)

    def stop(self, visitor: str) -> None:
        """Stop a visitor's answer, if there is one."""
        if (model := self._models.get(visitor)) is not None:
            model.stop()

    def stop_all(self) -> None:
        """Stop all."""
        for model in list(self._models.values()):
            model.stop()


def follow_answer(
    pieces: Iterator[Piece],
    model: ServerModel,
    conversation: Conversation,
    words: Mapping[str, str],
) -> Iterator[list[Any]]:
    """Show the pieces of an answer as they come, and make it a part of the conversation.

    Yields:
        What the conversation and the line below it show.
    """
    clock, shown_at = AnswerClock(), 0.0
    written: list[ParsedReply] = []
    reason = None
    for piece in pieces:
        clock.take(piece)
        written.append(piece.reply)
        reason = piece.finish_reason
        if time.monotonic() - shown_at >= _SHOW_EVERY_S:
            yield [_write_growing(conversation, written, words), gr.skip()]
            shown_at = time.monotonic()
    reply = ParsedReply.join(written)
    if reply.content or not model.is_stopped:
        conversation.keep(reply, is_stopped=model.is_stopped)
    else:
        conversation.take_back()
    parts = [words["stopped"]] if model.is_stopped else []
    if not reply and not model.is_stopped:
        parts.append(words["no_answer"])
    if reason == "length":
        parts.append(words["cut"])
    status = html.escape(words["comma"].join([*parts, *_tell_speed(clock, words)]))
    yield [write_entries(conversation.messages, words), status]


def _write_growing(
    conversation: Conversation, written: Sequence[ParsedReply], words: Mapping[str, str]
) -> list[Entry]:
    reply = ParsedReply.join(written)
    message = assistant_message(reply, len(conversation.messages), has_calls=True)
    is_thinking = not reply.content and not reply.tool_calls
    return write_entries([*conversation.messages, message], words, is_thinking=is_thinking)


def _tell_speed(clock: AnswerClock, words: Mapping[str, str]) -> list[str]:
    parts = [words["tokens"].format(count=clock.num_tokens)] if clock.num_tokens else []
    if clock.tokens_per_s is not None:
        parts.append(words["speed"].format(speed=clock.tokens_per_s))
    if clock.first_token_s is not None:
        parts.append(words["first"].format(seconds=clock.first_token_s))
    return parts


def write_error(problem: GlmError, words: Mapping[str, str]) -> str:
    """Write a sentence for the line below the conversation."""
    sentence = html.escape(words["error"].format(sentence=problem))
    return f'<span class="error" role="alert">{sentence}</span>'
