"""Chat templates: what Hugging Face writes, and an end for those that would not end."""

import resource
import time
from typing import Any

import pytest
from transformers.utils.chat_template_utils import _compile_jinja_template

from mindformers_glm.core.errors import GlmError, PromptError
from mindformers_glm.tokenizer.chat_template import ChatTemplate
from mindformers_glm.tokenizer.template_allowance import Allowance
from mindformers_glm.tokenizer.template_sandbox import render_template
from mindformers_glm.tokenizer.vocabulary import SpecialTokens

MESSAGES = [
    {"role": "system", "content": "Be brief.\nAnd kind."},
    {"role": "user", "content": "<b> a & b </b>"},
    {"role": "assistant", "content": "<think>hm</think> yes", "calls": [{"x": 1, "y": [2, "z"]}]},
]
_DOUBLED = "{%% set n = namespace(x=%s) %%}{%% for i in range(60) %%}%s{%% endfor %%}"


def new_template(source: str) -> ChatTemplate:
    return ChatTemplate(source, {}, SpecialTokens.as_written({"<|user|>": 1}), "/model")


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 4000000000 }}",
        "{{ [1] * 4000000000 }}",
        "{{ 9 ** 9 ** 9 ** 9 }}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{% for b in range(99999) if b < 0 %}x{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}" + "x" * 60000 + "{% endfor %}",
        "{% for i in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 60 }}{% endfor %}",
        "{% macro m(n) %}{{ m(n - 1) ~ m(n - 1) if n }}{% endmacro %}{{ m(60) }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        _DOUBLED % ("'aa'", "{% set n.x = n.x ~ n.x %}"),
        _DOUBLED % ("'aa'", "{% set n.x = n.x + n.x %}"),
        _DOUBLED % ("'aa'", "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}"),
        _DOUBLED % ("['a']", "{% set n.x = [n.x, n.x] %}") + "{{ n.x }}",
        _DOUBLED % ("['a']", "{% set n.x = [n.x, n.x] %}") + "{{ n.x | tojson }}",
        _DOUBLED % ("('a',)", "{% set n.x = (n.x, n.x) %}") + "{{ {n.x: 1} }}",
        _DOUBLED % ("3", "{% set n.x = n.x * n.x %}") + "{{ n.x }}",
        "{{ 'a'.ljust(4000000000) }}",
        "{{ ('a' | escape).center(4000000000) }}",
        "{{ 'a' | center(4000000000) }}",
        "{{ [1] | batch(4000000000, 'x') | list }}",
        "{{ '%4000000000d' % 1 }}",
        "{{ '%4000000000d' | format(1) }}",
        "{{ '{:4000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 4000000000) }}",
        "{{ ('a' * 40000).replace('a', 'b' * 40000) }}",
        "{{ ('a' * 40000) | replace('a', 'b' * 40000) }}",
        "{{ ('a' * 4000).join(range(99999) | map('string')) }}",
        "{{ ('\n' * 40000) | indent(9999) }}",
        "{% for i in range(999) %}{{ ('a' * 60000).rfind('b' + 'a' * 30000) }}{% endfor %}",
        "{{ strftime_now('%999999999Y') }}",
        "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
        "{{ " + "+".join(["1"] * 9000) + " }}",
        "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    ],
)
def test_a_template_that_would_not_end_is_stopped(source: str) -> None:
    begin, memory = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GlmError, match=r"The chat template of /model ") as problem:
        new_template(source).render(MESSAGES)
    assert "\n" not in str(problem.value)
    assert time.perf_counter() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 200_000  # KiB


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.last }} {% endfor %}",
        "{% for m in messages if m.role != 'user' %}{{ m.content | trim }}{% else %}-{% endfor %}",
        "{% for m in messages | rejectattr('role', 'equalto', 'user') %}{{ m.role }}{% endfor %}",
        "{% for m in messages[::-1] %}{{ m['content'].split('k>')[-1].lstrip() }}{% endfor %}",
        "{% for k, v in messages[0].items() %}{{ k ~ '=' ~ v }}{% endfor %}",
        "{{ messages | map(attribute='role') | join(', ') }} {{ messages | length }}",
        "{{ messages[2].calls | tojson(indent=2) }} {{ messages | tojson }}",
        "{{ '%s %05d' % (messages[0].role, 7) }} {{ '{} {{x}} {:>4}'.format('a', 1) }}",
        "{{ messages[0].content | indent(2) }} {{ 'a' | center(9) }} {{ 3 * 'ab' }} {{ 2 ** 10 }}",
        "{% macro m(x, y=2) %}{{ x }}{{ y }}{{ caller() if caller }}{% endmacro %}{{ m(1) }}"
        "{% call m(3) %}c{% endcall %}",
        "{% set n = namespace(a=0) %}{% for m in messages %}{% set n.a = n.a + 1 %}"
        "{% if loop.first %}{% continue %}{% endif %}{{ n.a }}{% break %}{% endfor %}{{ n.a }}",
        "{{ messages[1].content | e }} {{ (messages[1].content | safe) + '<' }} {{ missing }}",
        "{% generation %}{{ messages[0].content }}{% endgeneration %}",
        "{{ 'a' in 'abc' and messages[0] in messages and 1 < 2 <= 2 and 3 not in [1, 2] }}",
        "{{ [3, 1, 2] | sort | list }} {{ [1, 2] | sum }} {{ {'a': 1}.get('b', 2) }} {{ 7 // 2 }}",
        "{{ ' + '.join(['1', '2']) }} {{ ', '.join(messages | map(attribute='role')) }}",
        "{{ " + " + ".join(["'a'"] * 90) + " }}",
        "{% filter upper %}{{ messages[0].role }}{% endfilter %}{{ range(3) | list }}",
    ],
)
def test_other_templates_write_what_hugging_face_writes(source: str) -> None:
    values: dict[str, Any] = {"messages": MESSAGES, "tools": None, "add_generation_prompt": True}
    assert render_template(source, values, Allowance(values)) == _compile_jinja_template(
        source
    ).render(**values)


def test_a_conversation_of_a_million_tokens_with_a_hundred_tools_is_written() -> None:
    source = (
        "{% for tool in tools %}{{ tool | tojson(indent=4) }}{% endfor %}{% for m in messages %}"
        "{% set text = m.content.split('</think>')[-1].strip() %}{% if '<' in text %}!{% endif %}"
        "<|{{ m.role }}|>\n{{ text }}{% endfor %}"
    )
    messages = [
        {"role": "user" if turn % 2 else "assistant", "content": f"a word {turn} " * 10}
        for turn in range(30_000)
    ]
    properties = {f"p{number}": {"type": "string", "description": "what"} for number in range(20)}
    tools = [{"name": f"f{n}", "parameters": {"properties": properties}} for n in range(100)]
    values = {"messages": messages, "tools": tools}
    assert render_template(source, values, Allowance(values)) == _compile_jinja_template(
        source
    ).render(**values)


def test_the_limits_are_told_in_one_sentence() -> None:
    with pytest.raises(PromptError, match=r"is stopped, it takes more steps .*: take the template"):
        new_template("{{ 'a' * 4000000000 }}").render(MESSAGES)
