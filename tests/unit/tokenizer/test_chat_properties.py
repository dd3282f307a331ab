"""Any conversation with any template: the prompt holds all of it once, or an error says what not.

What a published template leaves out on purpose, and may:
- the thoughts of earlier answers: what stands before </think>, and `reasoning_content`;
- blanks around a text;
- which call a result answers (`tool_call_id`, `name`): results stand in the order of the calls.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mindformers_glm.core.errors import PromptError
from tests.unit.tokenizer.templates import (
    CALLS_IN_TAGS,
    PLAIN,
    ROLES,
    TOOLS_BESIDE,
    TOOLS_IN_MESSAGES,
    call_of,
    write,
)

_SETTINGS = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
_PIECES = ["", " ", "\n", "天气?", "<|user|>", "<|us", "er|>", '{"a": 1}', "'", '"', "\\", "👍"]
_Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass
class Conversation:
    """Messages and tools, and what a prompt must hold of them: texts whole, names and values."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    texts: list[str] = field(default_factory=list)
    named: list[str] = field(default_factory=list)  # of calls
    tool_names: list[str] = field(default_factory=list)
    has_system: bool = False
    has_cut_text: bool = False  # </think> where nobody thinks, but for system messages
    has_speaker: bool = False  # the `name` of a user


class _Writer:
    """Draws a conversation; every text and name in it is another one."""

    def __init__(self, draw: _Draw) -> None:
        self._draw = draw
        self._count = 0
        self.made = Conversation()

    def text(self, *, may_think: bool = False, is_system: bool = False) -> str:
        self._count += 1
        draw, marker = self._draw, f"t{self._count}t"
        pieces = st.sampled_from([*_PIECES, "</think>"] if draw(st.booleans()) else _PIECES)
        text = f"{draw(pieces)}{marker}{draw(pieces)}{marker}{draw(pieces)}"
        kept = text
        if "</think>" in text and may_think:
            kept = text.rpartition("</think>")[2]
        elif "</think>" in text and not is_system:
            self.made.has_cut_text = True
        self.made.texts.append(kept.strip())
        return text

    def content(self, **kwargs: bool) -> Any:
        text = self.text(**kwargs)
        cut = self._draw(st.integers(0, len(text)))
        parts = [{"type": "text", "text": part} for part in (text[:cut], text[cut:])]
        return self._draw(st.sampled_from([text, text, parts]))

    def name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}n"

    def arguments(self) -> tuple[Any, str]:
        """An object as it is given, and as JSON."""
        values: dict[str, Any] = {}
        for _ in range(self._draw(st.integers(0, 2))):
            key, text = self.name("k"), self.name("v")
            self.made.named += [key, text]
            values[key] = self._draw(st.sampled_from([text, [text, 1, None], {"天": text}]))
        written = json.dumps(values, ensure_ascii=False)
        empty = [None, ""] if not values else []
        return self._draw(st.sampled_from([values, written, *empty])), written

    def tool(self) -> dict[str, Any]:
        name = self.name("f")
        self.made.tool_names.append(name)
        function = {"name": name, "description": "d", "parameters": {"type": "object"}}
        wrapped = {"type": "function", "function": function}
        flat = {"type": "function", **function}
        return self._draw(st.sampled_from([wrapped, wrapped, function, flat]))

    def extras(self) -> dict[str, Any]:
        """Members that servers and clients add, without a meaning."""
        keys = ("name", "tool_calls", "function_call", "refusal", "audio", "metadata", "tools")
        nulls: dict[str, Any] = dict.fromkeys(
            self._draw(st.sets(st.sampled_from(keys), max_size=2))
        )
        return {**nulls, **self._draw(st.sampled_from([{}, {}, {"id": "m1"}, {"annotations": []}]))}

    def answer(self) -> list[dict[str, Any]]:
        kind = self._draw(st.sampled_from(["text", "text", "calls", "older", "family"]))
        if kind == "text":
            thoughts = self._draw(st.sampled_from([{}, {"reasoning_content": "thoughts"}]))
            content = self.content(may_think=True)
            return [self.extras() | thoughts | {"role": "assistant", "content": content}]
        name = self.name("c")
        self.made.named.append(name)
        arguments, as_json = self.arguments()
        role = self._draw(st.sampled_from(["tool", "function", "observation"]))
        result = {"role": role, "content": self.content()}
        if kind == "family":
            return [{"role": "assistant", "metadata": name, "content": as_json}, result]
        message: dict[str, Any] = {"role": "assistant"}
        if kind == "calls":
            message["tool_calls"] = [call_of(name, arguments)]
            result |= {"tool_call_id": "1"}
        else:
            message["function_call"] = {"name": name, "arguments": arguments}
            result |= {"name": name} if role == "function" else {}
        beside = self._draw(st.sampled_from(["absent", None, "", "text"]))
        if beside == "text":
            message["content"] = self.content(may_think=True)
        elif beside != "absent":
            message["content"] = beside
        return [message, result]


@st.composite
def conversations(draw: Any) -> Conversation:
    """Anything that OpenAI's form allows, the family's form mixed in."""
    writer = _Writer(draw)
    made = writer.made
    if draw(st.booleans()):
        made.has_system = True
        role = draw(st.sampled_from(["system", "developer"]))
        made.messages.append(
            writer.extras() | {"role": role, "content": writer.content(is_system=True)}
        )
    for _ in range(draw(st.integers(1, 3))):
        speaker = draw(st.sampled_from([{}] * 9 + [{"name": "Li"}]))
        made.has_speaker |= bool(speaker)
        user = {"role": "user", "content": writer.content()}
        made.messages.append(writer.extras() | user | speaker)
        made.messages += writer.answer() if draw(st.booleans()) else []
    tools = [writer.tool() for _ in range(draw(st.sampled_from([0, 0, 1, 2])))]
    if tools and draw(st.booleans()):
        made.messages.insert(0, {"role": "system", "content": "", "tools": tools})
    else:
        made.tools = tools or None
    return made


@dataclass(frozen=True)
class Template:
    """A template, and what it can write."""

    text: str
    writes_calls: bool = True
    writes_tools: bool = True
    writes_system: bool = True
    cuts_all: bool = False  # and not thoughts alone

    def can_write(self, made: Conversation) -> bool:
        return not (
            made.has_speaker
            or (made.named and not self.writes_calls)
            or (made.tool_names and not self.writes_tools)
            or (made.has_system and not self.writes_system)
            or (made.has_cut_text and self.cuts_all)
        )


_CONTENTS = [
    "{{ m.content }}",
    "{{ m['content'] | trim }}",
    "{% for c in m.content %}{{ c['text'] }}{% endfor %}",
    "{{ m.content if m.content is string else m.content | map(attribute='text') | join }}",
]
_ARGUMENTS = [
    "{{ f.arguments | tojson }}",
    "{{ f.arguments }}",
    "{{ f.arguments if f.arguments is string else f.arguments | tojson }}",
    "{% for k, v in f.arguments.items() %}<k>{{ k }}<v>{{ v | tojson }}{% endfor %}",
]
_CALLS = (
    "{% for call in m.tool_calls or [] %}{% set f = call.function %}<{{ f.name }}>HERE{% endfor %}"
)
_TOOLS = {
    "beside": "{% for t in tools or [] %}## {{ t.function.name }}{% endfor %}",
    "bare": "{% for t in tools or [] %}## {{ t['name'] }}{% endfor %}",
    "message": "{% for m in messages %}{% if m.tools is defined %}{% set tools = m.tools %}"
    "{% for t in tools %}## {{ t.function.name }}{% endfor %}{% endif %}{% endfor %}",
    "none": "",
}


@st.composite
def templates(draw: Any) -> Template:
    """Templates in the manners of the family and of fine-tuning tools."""
    content = draw(st.sampled_from(_CONTENTS))
    calls = draw(st.sampled_from(["metadata", "none", *_ARGUMENTS]))
    result = draw(st.sampled_from(["any", "tool", "observation"]))
    tools = draw(st.sampled_from(list(_TOOLS)))
    has_system = draw(st.booleans())
    answer = f"<|assistant|>\n{content}"
    if calls == "metadata":
        answer = f"<|assistant|>{{{{ m.metadata }}}}\n{content}"
    elif calls != "none":
        shown = f"{{% if m.content is defined %}}{content}{{% endif %}}"
        answer = f"<|assistant|>\n{shown}{_CALLS.replace('HERE', calls)}"
    head = "<|observation|>" if result == "tool" else "<|{{ m.role }}|>"
    others = ["user"] + ["system"] * has_system
    condition = "m.role != 'system'" if not has_system else "true"
    if result != "any":
        condition = f"m.role in {[*others, result]}"
    text = (
        f"[gMASK]<sop>{_TOOLS[tools]}{{% for m in messages %}}{{% if m.role == 'assistant' %}}"
        f"{answer}{{% elif m.role == '{result}' %}}{head}\n{content}{{% elif {condition} %}}"
        f"<|{{{{ m.role }}}}|>\n{content}{{% endif %}}{{% endfor %}}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return Template(text, calls != "none", tools != "none", has_system)


def _check(template: Template, made: Conversation) -> None:
    if not template.can_write(made):
        with pytest.raises(PromptError, match="has no place for"):
            write(template.text, made.messages, made.tools)
        return
    prompt = write(template.text, made.messages, made.tools)
    for text in made.texts:
        assert prompt.count(text) == 1 or not text
    for name in made.named:
        assert prompt.count(name) == 1
        assert f"'{name}'" not in prompt  # as Python writes it
        assert f'\\"{name}' not in prompt  # JSON in JSON
    for name in made.tool_names:
        assert f"## {name}" in prompt
        assert prompt.count(f"## {name}") == 1
    assert "None" not in prompt
    assert "Undefined" not in prompt
    plain = {"role", "content", "metadata"}
    if not made.tools and all(m["role"] in ROLES and set(m) <= plain for m in made.messages):
        as_it_is = _render(template.text, made)
        held = [as_it_is.count(text) == 1 for text in made.texts + made.named if text]
        if all(held) and "'type'" not in as_it_is and "None" not in as_it_is:
            assert prompt == as_it_is


def _render(template: str, made: Conversation) -> str:
    """The messages as they are, by Hugging Face."""
    from transformers.utils import chat_template_utils

    compiled = chat_template_utils._compile_jinja_template(template)
    return compiled.render(messages=made.messages, tools=None, add_generation_prompt=True)


@_SETTINGS
@given(templates(), conversations())
def test_a_prompt_holds_all_or_an_error_says_what_not(
    template: Template, made: Conversation
) -> None:
    _check(template, made)


@_SETTINGS
@given(
    st.sampled_from(
        [
            Template(TOOLS_IN_MESSAGES),
            Template(TOOLS_BESIDE),
            Template(CALLS_IN_TAGS, writes_tools=False),
            Template(PLAIN, writes_calls=False, writes_tools=False),
        ]
    ),
    conversations(),
)
def test_a_prompt_of_the_familys_manners_holds_all(template: Template, made: Conversation) -> None:
    _check(template, made)


@pytest.mark.parametrize(
    ("name", "cuts_all"), [("glm-4-9b-chat.jinja", False), ("glm-z1-0414.jinja.txt", True)]
)
@_SETTINGS
@given(made=conversations())
def test_a_prompt_by_a_published_template_holds_all(
    shared_fixtures: Path, name: str, cuts_all: bool, made: Conversation
) -> None:
    text = (shared_fixtures / "tokenizers" / "templates" / name).read_text(encoding="utf-8")
    _check(Template(text[text.index("[gMASK]") :], cuts_all=cuts_all), made)
