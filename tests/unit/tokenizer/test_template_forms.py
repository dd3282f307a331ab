"""Messages reach a template in the form that it reads, or an error names what would be lost."""

import sys
from typing import Any

import pytest

from mindformers_glm.core.errors import PromptError
from mindformers_glm.tokenizer.chat_writer import ChatWriter
from mindformers_glm.tokenizer.template_renderer import TemplateRenderer
from tests.unit.tokenizer.templates import (
    CALLS_IN_TAGS,
    PLAIN,
    SPECIALS,
    TOOLS_BESIDE,
    TOOLS_IN_MESSAGES,
    call_of,
    write,
)

USER = {"role": "user", "content": "x"}
FUNCTION = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": FUNCTION}
_ASK = "<|user|>\nx<|assistant|>"
_LIST = "<|system|>\n# tools## weather"  # a newline behind a tag is eaten


def _call(arguments: Any, **rest: Any) -> list[dict[str, Any]]:
    return [USER, {"role": "assistant", "tool_calls": [call_of("f", arguments)], **rest}]


@pytest.mark.parametrize("template", [TOOLS_IN_MESSAGES, TOOLS_BESIDE])
@pytest.mark.parametrize(
    "tool",
    [
        TOOL,
        FUNCTION,
        {"function": FUNCTION},
        {"type": "function", **FUNCTION},
        {**TOOL, "function": {**FUNCTION, "strict": None}},
    ],
)
def test_tools_are_written_wherever_and_however_they_are_given(template: str, tool: Any) -> None:
    expected = f"[gMASK]<sop>{_LIST}{_ASK}"
    assert write(template, [USER], [tool]) == expected
    for content in ("", None):
        message = {"role": "system", "content": content, "tools": [tool]}
        assert write(template, [message, USER]) == expected
    twice = [{"role": "system", "content": "", "tools": [tool]}, USER]
    assert write(template, twice, [tool]) == expected
    with_text = {"role": "system", "content": "be short", "tools": [tool]}
    assert write(template, [with_text, USER]) == expected.replace(
        _LIST, f"{_LIST}<|system|>\nbe short"
    )


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% for t in tools %}{{ t.name }};{% endfor %}{{ messages[0].content }}", "weather;x"),
        (
            "{{ messages[0].tools[0].name }};{% for m in messages %}{{ m.content }}{% endfor %}",
            "weather;x",
        ),
        # Its own tools, as GLM-Z1-Rumination's.
        ('[{"name": "weather"}, {"name": "f"}]{{ messages[0].content }}', None),
    ],
)
def test_a_template_may_read_tools_in_ways_of_its_own(template: str, expected: str | None) -> None:
    expected = expected or template.replace("{{ messages[0].content }}", "x")
    assert write(template, [USER], [TOOL]) == expected


def test_a_built_in_tool_is_written_or_refused() -> None:
    tools = [{"type": "python"}, TOOL]
    expected = f"[gMASK]<sop><|system|>\n# tools## python## weather{_ASK}"
    assert write(TOOLS_IN_MESSAGES, [USER], tools) == expected
    with pytest.raises(PromptError, match="no place for tool 'browser'"):
        write(TOOLS_IN_MESSAGES, [USER], [{"type": "browser"}])


@pytest.mark.parametrize(
    ("given", "role"),
    [
        ("developer", "system"),
        ("function", "observation"),
        ("tool", "observation"),
        ("observation", "observation"),
    ],
)
@pytest.mark.parametrize("template", [TOOLS_IN_MESSAGES, TOOLS_BESIDE, CALLS_IN_TAGS, PLAIN])
def test_roles_have_one_meaning(template: str, given: str, role: str) -> None:
    found = write(template, [{"role": given, "content": "r"}, USER])
    assert found == f"[gMASK]<sop><|{role}|>\nr{_ASK}"


def test_a_role_is_written_as_given_where_the_model_has_no_token_for_it() -> None:
    chat_ml = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>{% endfor %}"
    assert write(chat_ml, [{"role": "tool", "content": "r"}]) == "<s>tool\nr</s>"
    assert write(chat_ml, [{"role": "observation", "content": "r"}]) == "<s>observation\nr</s>"
    assert write(chat_ml, [{"role": "developer", "content": "r"}]) == "<s>system\nr</s>"


@pytest.mark.parametrize(
    "content",
    [
        "ab",
        ["a", "b"],
        [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
        ({"text": "a"}, {"type": "text", "text": ""}, "b"),
    ],
)
@pytest.mark.parametrize(
    "template",
    [
        PLAIN,
        CALLS_IN_TAGS,
        PLAIN.replace("{{ m.content }}", "{% for c in m.content %}{{ c.text }}{% endfor %}"),
        PLAIN.replace("{{ m.content }}", "{{ m.content | map(attribute='text') | join }}"),
    ],
)
def test_text_parts_are_one_text(template: str, content: Any) -> None:
    found = write(template, [{"role": "user", "content": content}])
    assert found == "[gMASK]<sop><|user|>\nab<|assistant|>"


_ONE_CALL = """{% for m in messages %}[{{ m.content }}]
{%- for c in m.tool_calls %}{{ c.function.name }}(HERE){% endfor %}{% endfor %}"""


@pytest.mark.parametrize(
    ("how", "given", "expected"),
    [
        ("{{ ARGS | tojson }}", '{"a":1}', '{"a": 1}'),
        ("{{ ARGS | tojson }}", {"a": "天"}, '{"a": "天"}'),
        ("{{ ARGS }}", '{"a":1}', '{"a":1}'),
        ("{{ ARGS }}", {"a": 1}, '{"a": 1}'),
        ("{% for k, v in ARGS.items() %}{{ k }}={{ v }};{% endfor %}", '{"a":1}', "a=1;"),
        ("{% for k in ARGS %}{{ k }}={{ ARGS[k] }}{% endfor %}", '{"a": "b"}', "a=b"),
        ("{{ ARGS | tojson }}", None, "{}"),
        ("{{ ARGS | tojson }}", "", "{}"),
        ("{{ ARGS | tojson }}", "{}", "{}"),
        ("{{ ARGS | tojson if ARGS is mapping }}", '{"a":1}', '{"a": 1}'),
        ("{{ ARGS if ARGS is string }}", {"a": 1}, '{"a": 1}'),
        ("{{ ARGS | string + ARGS | tojson }}", '"x y"', 'x y"x y"'),
    ],
)
def test_arguments_are_what_the_template_makes_json_of(how: str, given: Any, expected: str) -> None:
    template = _ONE_CALL.replace("HERE", how).replace("ARGS", "c.function.arguments")
    assert write(template, _call(given)) == f"[x][]f({expected})"
    older = [USER, {"role": "assistant", "function_call": {"name": "f", "arguments": given}}]
    assert write(template, older) == f"[x][]f({expected})"


def test_calls_and_results_are_written_in_the_form_of_the_template() -> None:
    openai = [
        *_call('{"a":1}', content="z"),
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": "r"},
    ]
    family = [
        USER,
        {"role": "assistant", "content": "z"},
        {"role": "assistant", "metadata": "f", "content": '{"a":1}'},
        {"role": "observation", "content": "r"},
    ]
    expected = '<|user|>\nx<|assistant|>\nz<|assistant|>f\n{"a":1}<|observation|>\nr<|assistant|>'
    for template in (TOOLS_IN_MESSAGES, TOOLS_BESIDE):
        for messages in (openai, family):
            assert write(template, messages) == f"[gMASK]<sop>{expected}"
    in_tags = "<call>f<key>a</key><value>1</value></call>"
    assert write(CALLS_IN_TAGS, openai) == (
        f"[gMASK]<sop><|user|>\nx<|assistant|>\nz{in_tags}<|observation|>\nr<|assistant|>"
    )
    assert write(CALLS_IN_TAGS, family) == (
        f"[gMASK]<sop><|user|>\nx<|assistant|>\nz<|assistant|>\n{in_tags}<|observation|>\nr"
        "<|assistant|>"
    )


def test_the_plain_text_of_a_built_in_tool_stays_plain() -> None:
    for template in (TOOLS_IN_MESSAGES, TOOLS_BESIDE):
        assert "<|assistant|>f\nprint('x')<|" in write(template, _call("\"print('x')\""))
        family = {"role": "assistant", "metadata": "f", "content": "print('x')"}
        assert "<|assistant|>f\nprint('x')<|" in write(template, [USER, family])


@pytest.mark.parametrize("template", [TOOLS_IN_MESSAGES, TOOLS_BESIDE, CALLS_IN_TAGS, PLAIN])
def test_null_and_empty_members_are_absent(template: str) -> None:
    keys = ("metadata", "tools", "tool_calls", "function_call", "name", "refusal", "audio")
    message = USER | dict.fromkeys(keys) | {"annotations": []}
    assert write(template, [message]) == f"[gMASK]<sop>{_ASK}"
    if template != PLAIN:
        assert "None" not in write(template, _call("{}", content=None))


@pytest.mark.parametrize(
    ("template", "messages", "tools", "lost"),
    [
        (PLAIN, [USER], [TOOL], "tool 'weather'"),
        (PLAIN, [{"role": "system", "content": "", "tools": [TOOL]}, USER], None, "tool 'weather'"),
        (PLAIN, _call("{}"), None, "the call of 'f' in message 2 .role assistant"),
        (CALLS_IN_TAGS, [USER], [TOOL], "tool 'weather'"),
        ("{{ messages[-1].content }}", [USER, USER], None, "the text of message 1 .role user"),
        ("{{ messages[0].content[:3] }}", [USER], None, "the text of message 1"),
        ("{{ messages[0].content[:3] }}", [{"role": "user", "content": ["x"]}], None, "the text"),
        (
            "{% for m in messages if m.role in ('user', 'assistant') %}{{ m.content }}{% endfor %}",
            [{"role": "system", "content": "s"}, USER],
            None,
            "the text of message 1 .role system",
        ),
        (PLAIN, [USER | {"name": "Li"}], None, "'name' of message 1 .role user"),
        (PLAIN, [USER | {"metadata": "m"}], None, "the metadata of message 1"),
        (PLAIN, [USER | {"prefix": True}], None, "'prefix' of a message .role user"),
        (PLAIN, [USER | {"audio": {"id": "1"}}], None, "'audio' of a message"),
        # What is thought may be left out, but a user's text and a call's arguments hold none.
        (
            TOOLS_BESIDE.replace(
                "m.content }}{% elif", "m.content.split('</think>')[-1] }}{% elif"
            ),
            [{"role": "user", "content": "what is </think> for?"}],
            None,
            "the text of message 1",
        ),
        (
            PLAIN.replace("m.content", "m.content.split('</think>')[-1]"),
            [{"role": "user", "content": "a" * 999 + "</think>" + "b" * 999}],
            None,
            "the text of message 1",
        ),
        (TOOLS_BESIDE, _call({"a": "b</think>c"}), None, "the call of 'f'"),
        (_ONE_CALL.replace("HERE", ""), _call({"a": 1}), None, "the call of 'f'"),
    ],
)
def test_what_would_be_lost_is_named(template: str, messages: Any, tools: Any, lost: str) -> None:
    with pytest.raises(PromptError, match=f"chat template of DIR has no place for {lost}"):
        write(template, messages, tools)


def test_what_a_template_reads_is_no_loss() -> None:
    template = "{% for m in messages %}{{ m.name }}:{{ m.content }}{{ '!' if m.loud }}{% endfor %}"
    assert write(template, [USER | {"name": "Li", "loud": True}]) == "Li:x!"


def test_thoughts_of_earlier_answers_may_be_left_out() -> None:
    answer = {"role": "assistant", "content": "<think>t</think>y", "reasoning_content": "t"}
    assert write(TOOLS_BESIDE, [USER, answer, USER]) == (
        "[gMASK]<sop><|user|>\nx<|assistant|>\ny<|user|>\nx<|assistant|>"
    )


def test_a_template_that_refuses_a_form_is_given_another() -> None:
    template = (
        "{% for m in messages %}{{ raise_exception('no') if m.role == 'tool' }}<|{{ m.role }}|>\n"
        "{{ m.content }}{% endfor %}"
    )
    assert write(template, [{"role": "tool", "content": "r"}]) == "<|observation|>\nr"
    with pytest.raises(PromptError, match="cannot write these messages: only once"):
        write("{{ raise_exception('only once') }}", [USER])


def test_a_call_without_a_text_fits_templates_that_ask_for_its_text() -> None:
    template = _ONE_CALL.replace("HERE", "").replace("m.content", "m.content.strip()")
    assert write(template + "{{ messages[1].tool_calls[0].function | tojson }}", _call("{}")) == (
        '[x][]f(){"name": "f", "arguments": {}}'
    )


def test_a_result_beside_a_call_in_the_familys_form_has_the_familys_role() -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.metadata }}{{ m.content }}{% endfor %}"
    messages = [*_call("{}"), {"role": "tool", "content": "r"}]
    assert write(template, messages) == "[user]x[assistant]f{}[observation]r"


@pytest.mark.parametrize("built_in", [None, "glm4_chat", "chatglm3"])
def test_messages_nested_beyond_reason_are_one_sentence(built_in: str | None) -> None:
    nested: Any = {}
    for _ in range(sys.getrecursionlimit()):
        nested = {"a": nested}
    templates = {} if built_in else {"default": TOOLS_IN_MESSAGES}
    writer = ChatWriter(templates, built_in, {}, SPECIALS, "DIR")
    with pytest.raises(PromptError, match="nested too deeply"):
        writer.write(_call(nested))


def _long(num_rounds: int) -> list[dict[str, Any]]:
    result = {"role": "tool", "tool_call_id": "1", "content": "sunny"}
    last = {"role": "assistant", "content": "fine"}
    return [m for n in range(num_rounds) for m in (*_call({"n": n}, content=None), result, last)]


def _count_messages(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counted = []
    render = TemplateRenderer.render

    def count(renderer: TemplateRenderer, messages: Any, *args: Any, **kwargs: Any) -> str:
        counted.append(len(messages))
        return render(renderer, messages, *args, **kwargs)

    monkeypatch.setattr(TemplateRenderer, "render", count)
    return counted


@pytest.mark.parametrize("template", [TOOLS_BESIDE, TOOLS_IN_MESSAGES])
def test_a_long_conversation_is_rendered_whole_twice(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = [*_long(40), USER]
    counted = _count_messages(monkeypatch)
    written = write(template, messages, [TOOL])
    assert written.count("<|observation|>") == 40
    assert len([count for count in counted if count > 40]) == 2
    short = write(template, [*_long(1), USER], [TOOL])
    assert written.startswith(short.removesuffix(_ASK))


def test_what_the_beginning_of_a_long_conversation_loses_is_told_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    messages = [*_long(40), USER]
    counted = _count_messages(monkeypatch)
    with pytest.raises(PromptError, match="no place for tool 'weather'"):
        write(CALLS_IN_TAGS, messages, [TOOL])
    assert max(counted) < 20


def test_what_only_the_whole_of_a_long_conversation_loses_is_found() -> None:
    template = PLAIN.replace("in messages", "in messages[-10:]")
    turns = [USER, {"role": "assistant", "content": "y"}] * 20
    assert write(template, turns[:10]).count("<|user|>") == 5
    with pytest.raises(PromptError, match="no place for the text of message 1 "):
        write(template, turns)


def test_a_template_that_wants_a_user_last_takes_a_long_conversation() -> None:
    check = "{% if messages[-1].role != 'user' %}{{ raise_exception('no user') }}{% endif %}"
    messages = [*[USER, {"role": "assistant", "content": "y"}] * 20, USER]
    assert write(check + PLAIN, messages).count("<|user|>") == 21


def test_keys_that_no_template_reads_are_looked_for_a_few_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    messages = [USER | {f"k{n}": n} for n in range(50)]
    counted = _count_messages(monkeypatch)
    with pytest.raises(PromptError, match=r"'k0' of a message .*'k4' of a message .*, \.\.\.: "):
        write(PLAIN, messages)
    assert len(counted) < 20


def test_all_forms_of_a_conversation_share_an_allowance(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = _count_messages(monkeypatch)
    slow = "{% set ns = namespace(x=['a']) %}{% for m in range(99999) %}{{ 'a' }}{% endfor %}"
    for _ in range(2):  # the next conversation has an allowance of its own
        counted.clear()
        with pytest.raises(PromptError, match="takes more steps"):
            write(slow, _call("{}"))
        assert len(counted) < 20
