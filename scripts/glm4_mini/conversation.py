"""A training or held-out example, and the rule that decides which of the two it is."""

import json
import zlib
from dataclasses import dataclass
from typing import Any

Message = dict[str, str]

# One key in ten is held out. The rule looks at the text alone, so no list has to be kept and
# a generator cannot leak: it asks before it yields.
HELDOUT_ONE_IN = 10


@dataclass(frozen=True)
class Example:
    """One conversation with the expected last assistant text.

    `key` decides training or held-out; the default is the whole prompt. Arithmetic passes the pair
    of numbers instead, so that no wording of a held-out pair is trained on.
    `hard` are the words of the answer that cannot be guessed from its form; they weigh more.
    `always_train` marks the plain wording of a fact: a fact nobody teaches cannot be asked.
    """

    category: str
    messages: tuple[Message, ...]
    answer: str
    tools: tuple[dict[str, Any], ...] = ()
    key: str = ""
    always_train: bool = False
    stop: str = "<|user|>"
    hard: tuple[str, ...] = ()

    @property
    def is_heldout(self) -> bool:
        """Whether this example belongs to the held-out side."""
        if self.always_train:
            return False
        key = self.key or self.prompt_text
        return zlib.crc32(key.encode()) % HELDOUT_ONE_IN == 0

    @property
    def prompt_text(self) -> str:
        """The messages as one string; two examples with the same prompt have the same string."""
        return json.dumps(self.messages, ensure_ascii=False, sort_keys=True)

    def to_json(self) -> str:
        """One line of heldout.jsonl."""
        row: dict[str, Any] = {"category": self.category, "messages": list(self.messages)}
        if self.tools:
            row["tools"] = list(self.tools)
        row["answer"] = self.answer
        return json.dumps(row, ensure_ascii=False)


def user(text: str) -> Message:
    """A user message."""
    return {"role": "user", "content": text}


def system(text: str) -> Message:
    """A system message."""
    return {"role": "system", "content": text}


def assistant(text: str, metadata: str = "") -> Message:
    """An assistant message; `metadata` is the tool name of a tool call."""
    message = {"role": "assistant", "content": text}
    return message | {"metadata": metadata} if metadata else message


def observation(text: str) -> Message:
    """The result of a tool."""
    return {"role": "observation", "content": text}
