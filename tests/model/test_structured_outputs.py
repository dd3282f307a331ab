"""Forms and demanded calls on the shipped checkpoint."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("llguidance")

from mindformers_glm import LLM, SamplingParams
from tests.conftest import MINI

pytestmark = pytest.mark.weights
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(MINI, max_model_len=512) as llm:
        yield llm


def test_a_known_answer_is_given_in_the_form(llm: LLM) -> None:
    """The model knows the answer; the form decides how it says it."""
    form = {"regex": r"[^\n]{0,40}北京[^\n]{0,200}"}
    (output,) = llm.generate(["请介绍一下北京"], SamplingParams(structured_outputs=form))
    (free,) = llm.generate(["请介绍一下北京"], SamplingParams())
    assert output.finish_reason == "stop"
    assert output.reply is not None
    assert free.reply is not None
    assert output.reply.content == free.reply.content


def test_forms_and_free_answers_run_together(llm: LLM) -> None:
    prompts = ["请介绍一下北京", "1+1=?", "hello"]
    forms: list[dict[str, Any] | None] = [None, {"regex": "[0-9]{1,3}"}, {"choice": ["是", "否"]}]
    params = [SamplingParams(structured_outputs=form, max_tokens=30) for form in forms]
    together = llm.generate(prompts, params)
    for prompt, own, output in zip(prompts, params, together, strict=True):
        assert output.token_ids == llm.generate([prompt], own)[0].token_ids
    assert together[1].reply is not None
    assert together[1].reply.content.isdigit()
    assert together[2].reply is not None
    assert together[2].reply.content in ("是", "否")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "get_weather"}])
def test_a_demanded_call_is_made_and_read(llm: LLM, choice: Any) -> None:
    messages = [{"role": "user", "content": "你好"}]
    output = llm.chat(messages, SamplingParams(max_tokens=80), _TOOLS, choice)
    assert output.reply is not None
    assert output.reply.content == ""
    assert output.finish_reason in ("stop", "length")
    if output.finish_reason == "stop":
        (call, *_) = output.reply.tool_calls
        assert call.name == "get_weather"
        assert json.loads(call.arguments).keys() == {"city"}


def test_a_call_that_the_model_would_make_anyway_is_the_same(llm: LLM) -> None:
    messages = [{"role": "user", "content": "北京今天天气怎么样？"}]
    params = SamplingParams(max_tokens=80)
    free = llm.chat(messages, params, _TOOLS)
    demanded = llm.chat(messages, params, _TOOLS, {"type": "function", "name": "get_weather"})
    assert free.reply is not None
    assert demanded.reply is not None
    assert demanded.reply.tool_calls == free.reply.tool_calls != ()
