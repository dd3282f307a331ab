"""What one visitor of the page has said and heard, and how a page shows it."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mindformers_glm.serving.chat.model import Message, assistant_message
from mindformers_glm.serving.web.markdown import escape_html
from mindformers_glm.tokenizer.replies import ParsedReply

Entry = dict[str, Any]  # a message in the form of gradio's Chatbot


class Conversation:
    """Turns of one visitor.

    messages: in OpenAI's form, without the system prompt.
    is_asked: whether the last message waits for an answer.
    is_answered: whether one is under way.
    is_forgotten: whether its visitor has begun another one.
    unanswered: the question that was taken back last, for its field.
    is_changed: whether a message came since the visitor was last let type again.
    """

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.is_asked = self.is_answered = self.is_changed = self.is_forgotten = False
        self.unanswered = ""
        self._open_calls: list[Any] = []  # of the last answer, whose results are to come

    @property
    def open_call(self) -> str:
        """The name of the function whose result comes next; "": none."""
        return str(self._open_calls[0]["function"]["name"]) if self._open_calls else ""

    def add(self, text: str) -> None:
        """Take what the visitor has typed: a question, or the result of a call."""
        self.is_changed = True
        if self._open_calls:
            call = self._open_calls.pop(0)
            self.messages.append({"role": "tool", "content": text, "tool_call_id": call["id"]})
            self.is_asked = not self._open_calls
        elif text.strip():
            self.messages.append({"role": "user", "content": text})
            self.is_asked = True

    def keep(self, reply: ParsedReply, *, is_stopped: bool) -> None:
        """Make an answer a part of the conversation; one that was stopped calls nothing."""
        message = assistant_message(reply, len(self.messages), has_calls=not is_stopped)
        self._open_calls = list(message.get("tool_calls", ()))
        self.messages.append(message)
        self.is_asked = False

    def take_back(self) -> str:
        """Forget the last question with all that came of it; returns its text."""
        asked = max(i for i, message in enumerate(self.messages) if message["role"] == "user")
        text = str(self.messages[asked]["content"])
        del self.messages[asked:]
        self._open_calls, self.is_asked = [], False
        self.unanswered = text
        return text


def write_entries(
    messages: Sequence[Message], words: Mapping[str, str], *, is_thinking: bool = False
) -> list[Entry]:
    """Write messages as a page shows them: thoughts, calls and their results can be folded.

    Args:
        words: in the page's language (words.py).
        is_thinking: whether more of the last thought may come; it is open until then.
    """
    entries: list[Entry] = []
    names: dict[str, str] = {}
    for place, message in enumerate(messages):
        content = message["content"] or ""
        if message["role"] == "user":
            entries.append({"role": "user", "content": escape_html(content)})
            continue
        if message["role"] == "tool":
            title = words["result"].format(name=names[message["tool_call_id"]])
            entries.append(_folded(title, _fenced(content)))
            continue
        if thought := message.get("reasoning_content", "").strip("\n"):
            is_open = is_thinking and place == len(messages) - 1
            title = words["thinking" if is_open else "thought"]
            entries.append(_folded(title, escape_html(thought), is_open=is_open))
        if text := content.lstrip("\n"):  # GLM-4 begins with a newline
            entries.append({"role": "assistant", "content": escape_html(text)})
        for call in message.get("tool_calls", ()):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            names[call["id"]] = name
            title = words["call"].format(name=name)
            entries.append(_folded(title, _fenced(_indented(arguments), "json"), is_open=True))
    return entries


def _folded(title: str, content: str, *, is_open: bool = False) -> Entry:
    # gradio folds what is "done"; without a status it is open and shows no wheel.
    status = {} if is_open else {"status": "done"}
    return {"role": "assistant", "content": content, "metadata": {"title": title, **status}}


def _fenced(text: str, language: str = "") -> str:
    """Text as a block of code, whatever fences it holds itself."""
    longest = max(map(len, re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _indented(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError):  # cut off, or no JSON: as it came
        return arguments
