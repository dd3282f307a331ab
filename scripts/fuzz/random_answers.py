"""Answers as the models of the family write them, with what each of them means.

An answer is made from its meaning (thoughts, texts, calls), so what a parser must find in it is
known without one. Texts and arguments hold what parsers trip over: names of tools, braces, quotes,
fences, tags and halves of them, characters of one to four bytes, CRLF.
"""

import json
import random
from dataclasses import dataclass
from typing import Any

from mindformers_glm.tokenizer.replies import CLOSE_TAG, OPEN_TAG

TURN = "\x00"  # stands for the token <|assistant|>
_NAMES = ("get_weather", "get_time", "get", "查询", "run-2")
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in _NAMES
]
_FIXED_TOOLS = ("search", "click", "open", "finish")  # GLM-Z1-Rumination's own
_WORDS = (
    *("你好", "北京", "a", "the", "1.5", "🙂", "é", "get_weather", "get_time is", "查询", "get"),
    *("{", "}", '{"city": 1}', "[", '"', "'", "\\", "```", "```python", ")", "tool_call(a=1)"),
    *("<", "</", "</th", "<thin", "<tool", "\t", "  ", ",", "\\n", '{"name": "search"'),
)
_VALUES = (None, True, False, 0, -7, 1.5, "", "x")


@dataclass(frozen=True)
class Kind:
    """A generation of the family.

    tool_calls, reasoning: names of the parsers.
    starts_inside: the prompt has begun the thoughts.
    """

    tool_calls: str
    reasoning: str = "none"
    starts_inside: bool = False


KINDS = (
    Kind("glm4"),
    Kind("glm4", "glm_z1", True),
    Kind("glm4", "glm_z1"),
    Kind("chatglm3"),
    Kind("chatglm2"),
    Kind("glm_z1_rumination", "glm_z1"),
    Kind("glm_z1_rumination", "glm_z1", True),
    Kind("none"),
    Kind("none", "glm_z1", True),
)


@dataclass(frozen=True)
class RandomAnswer:
    """What the model wrote, and what it means.

    calls: names and arguments.
    """

    kind: Kind
    has_tools: bool
    text: str
    reasoning: str
    content: str
    calls: list[tuple[str, Any]]


def make_answer(rng: random.Random, kind: Kind | None = None) -> RandomAnswer:
    """Make an answer of one kind, or of any."""
    kind = kind or rng.choice(KINDS)
    has_tools = rng.random() < 0.8
    is_rumination = kind.tool_calls == "glm_z1_rumination"
    calls_tools = (has_tools or is_rumination) and kind.tool_calls not in ("none", "chatglm2")
    reasoning, written = _make_thoughts(rng, kind)
    has_thoughts = bool(written)
    contents: list[str] = []
    calls: list[tuple[str, Any]] = []
    messages = []
    for place in range(rng.choice([1, 1, 1, 2, 3])):
        is_behind_thoughts = has_thoughts and not place
        if kind.tool_calls not in ("none", "chatglm2") and rng.random() < 0.6:
            name, arguments, text = _make_call(rng, kind, has_tools=has_tools)
            messages.append(text)
            if calls_tools:
                calls.append((name, arguments))
                continue
            shown = text  # a call that nobody may make is text
        else:
            shown = _make_text(rng)
            has_line = kind.tool_calls != "none" and not is_behind_thoughts
            messages.append(("\n" if has_line else "") + shown)
        contents.append(shown)
    return RandomAnswer(
        kind, has_tools, written + TURN.join(messages), reasoning, "\n".join(contents), calls
    )


def _make_thoughts(rng: random.Random, kind: Kind) -> tuple[str, str]:
    """Return thoughts and how they are written, with their tags."""
    if kind.reasoning == "none" or (not kind.starts_inside and rng.random() < 0.3):
        return "", ""
    lines = [_make_text(rng) for _ in range(rng.randint(0, 3))]
    if rng.random() < 0.4:  # a call that is only thought of
        lines.append('get_weather\n{"city": "北京"}')
    thoughts = "\n".join(lines)
    opening = "" if kind.starts_inside else rng.choice(["", "\n"]) + OPEN_TAG
    before, behind = rng.choice(["", "\n"]), rng.choice(["", "\n", "\n\n"])
    closing = rng.choice(["", "\n"]) + CLOSE_TAG
    return thoughts.strip(), opening + before + thoughts + closing + behind


def _make_text(rng: random.Random) -> str:
    """A text that is no call by any rules: each of its lines begins with a word of its own."""
    lines = []
    for _ in range(rng.choice([1, 1, 2, 4])):
        words = rng.choices(_WORDS, k=rng.randint(0, 8))
        lines.append(
            rng.choice(["好的", "- x", "I look", "答"]) + rng.choice(["", " "]).join(words)
        )
    text = rng.choice(["\n", "\n", "\n\n", "\r\n"]).join(lines).rstrip()
    return text.replace(CLOSE_TAG, "").replace(OPEN_TAG, "")


def _make_call(rng: random.Random, kind: Kind, *, has_tools: bool) -> tuple[str, Any, str]:
    """Return a call's name, its arguments, and how it is written."""
    arguments = {_make_key(rng): _make_value(rng) for _ in range(rng.choice([0, 1, 1, 2, 4]))}
    if kind.tool_calls == "glm_z1_rumination":
        name = rng.choice([*_FIXED_TOOLS, *(_NAMES if has_tools else ())])
        return name, arguments, _write_json(rng, {"name": name, "arguments": arguments})
    name = rng.choice(_NAMES)
    if kind.tool_calls == "glm4":
        gap = rng.choice(["\n", "\n", " \n", "\r\n"])
        return name, arguments, name + gap + _write_json(rng, arguments)
    written = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    gap = rng.choice(["\n", "\n ", "\r\n"])
    return name, arguments, f"{name}{gap}```python\ntool_call({written})\n```"


def _make_key(rng: random.Random) -> str:
    return rng.choice(["city", "at", "城市", "a_b", "code"]) + rng.choice(["", "", "2", "3"])


def _make_value(rng: random.Random, depth: int = 0) -> Any:
    drawn = rng.random()
    if drawn < 0.15 and depth < 3:
        return [_make_value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    if drawn < 0.3 and depth < 3:
        return {_make_key(rng): _make_value(rng, depth + 1) for _ in range(rng.randint(0, 3))}
    if drawn < 0.5:
        return rng.choice(_VALUES)
    # Some are so long that they are streamed before their end.
    pieces = [*_WORDS, "\n", CLOSE_TAG, OPEN_TAG, "\nget_time\n{}", "\r", "\x01", "'\""]
    return " ".join(rng.choices(pieces, k=rng.choice([1, 3, 8, 120])))


def _write_json(rng: random.Random, value: Any) -> str:
    return json.dumps(
        value,
        ensure_ascii=rng.random() < 0.3,
        indent=rng.choice([None, None, 2]),
        separators=rng.choice([None, None, (",", ":")]),
    )
