"""Calls that a `tool_choice` demands: the model's own format, read back by its own parser.

The logits are random, so nothing but the grammar makes the calls.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llguidance")

from tokenizers import Tokenizer

from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from tests.e2e.random_checkpoint import write_checkpoint
from tests.engine.conftest import VOCAB

_WEATHER = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 5},
            "days": {"type": "integer", "minimum": 1, "maximum": 14},
            "unit": {"enum": ["C", "F", "it's", None]},
            "exact": {"type": "boolean"},
            "tags": {"type": "array", "items": {"enum": ["a", 'b"c']}, "maxItems": 2},
            "place": {"$ref": "#/$defs/place"},
        },
        "required": ["city", "exact"],
        "$defs": {
            "place": {
                "type": "object",
                "properties": {"x": {"type": "number", "minimum": 0, "maximum": 9}, "in": {}},
                "required": ["x"],
                "additionalProperties": False,
            }
        },
    },
}
_WEATHER["parameters"]["$defs"]["place"]["properties"]["in"] = {  # type: ignore[index]
    "anyOf": [{"type": "boolean"}, {"$ref": "#/$defs/place"}]
}
_NOW = {"type": "function", "function": {"name": "get_now"}}
_TOOLS = [{"type": "function", "function": _WEATHER}, _NOW]
_MESSAGES = [{"role": "user", "content": "x"}]
_CONVERSATIONS = [[{"role": "user", "content": f"x{number}"}] for number in range(16)]
_FORMATS = ["glm4", "chatglm3", "glm_z1_rumination"]
_RANDOM = {"temperature": 1.0, "top_k": 0, "max_tokens": 700}


@pytest.fixture
def open_llm(tmp_path: Path) -> Callable[..., LLM]:
    write_checkpoint(tmp_path, vocab_size=VOCAB + 1, max_position_embeddings=2_000)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|assistant|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text(
        "{{ tools }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}<|assistant|>"
    )
    return lambda **settings: LLM(tmp_path, max_model_len=2_000, **settings)


def _check_call(call: Any) -> None:
    arguments = json.loads(call.arguments)
    if call.name == "get_now":
        assert arguments == {}
        return
    assert call.name == "get_weather"
    assert {"city", "exact"} <= arguments.keys() <= _WEATHER["parameters"]["properties"].keys()  # type: ignore[index]
    assert len(arguments["city"]) <= 5
    assert arguments["exact"] in (True, False)
    assert 1 <= arguments.get("days", 1) <= 14
    assert arguments.get("unit") in ("C", "F", "it's", None)
    assert {*arguments.get("tags", [])} <= {"a", 'b"c'}
    place = arguments.get("place", {"x": 0})
    while isinstance(place, dict):
        assert 0 <= place["x"] <= 9
        place = place.get("in", True)
    assert place in (True, False)


def _finished(outputs: list[RequestOutput]) -> list[Any]:
    replies = [output.reply for output in outputs if output.finish_reason == "stop"]
    assert all(output.finish_reason in ("stop", "length") for output in outputs), outputs[0].error
    assert len(replies) > len(outputs) // 3
    return replies


@pytest.mark.parametrize("parser", _FORMATS)
def test_a_named_tool_is_called_once(open_llm: Callable[..., LLM], parser: str) -> None:
    with open_llm(tool_call_parser=parser) as llm:
        choice = {"type": "function", "function": {"name": "get_weather"}}
        outputs = llm.chat(
            _CONVERSATIONS,
            [SamplingParams(seed=seed, **_RANDOM) for seed in range(16)],
            _TOOLS,
            choice,
        )
    for reply in _finished(outputs):
        assert (reply.content, reply.reasoning) == ("", "")
        (call,) = reply.tool_calls
        assert call.name == "get_weather"
        _check_call(call)


@pytest.mark.parametrize("parser", _FORMATS)
@pytest.mark.parametrize("is_parallel", [True, False])
def test_a_required_call_is_one_or_where_it_may_be_several(
    open_llm: Callable[..., LLM], parser: str, is_parallel: bool
) -> None:
    counts = []
    with open_llm(tool_call_parser=parser) as llm:
        for seed in range(16):
            request = llm.frontend.new_request(
                str(seed),
                _CONVERSATIONS[seed],
                SamplingParams(seed=seed, **_RANDOM),
                _TOOLS,
                "required",
                parallel_tool_calls=is_parallel,
            )
            assert llm.frontend.submit(request, llm.engine) is None
            while llm.engine.has_unfinished():
                for step_output in llm.engine.step():
                    output = request.read(step_output)
            if output.finish_reason == "length":
                continue
            assert output.finish_reason == "stop", output.error
            assert output.reply is not None
            assert output.reply.content == ""
            counts.append(len(output.reply.tool_calls))
            for call in output.reply.tool_calls:
                if call.name in ("get_weather", "get_now"):
                    _check_call(call)
    assert min(counts) == 1
    assert (max(counts) > 1) == is_parallel
    assert len(counts) > 6


@pytest.mark.parametrize("parser", ["glm4", "chatglm3"])
def test_with_tools_an_answer_is_a_call_or_has_the_form(
    open_llm: Callable[..., LLM], parser: str
) -> None:
    with open_llm(tool_call_parser=parser) as llm:
        form = {"json": {"type": "object", "properties": {"k": {"type": "boolean"}}}}
        form["json"] |= {"required": ["k"], "additionalProperties": False}
        params = [SamplingParams(seed=s, structured_outputs=form, **_RANDOM) for s in range(16)]
        replies = _finished(llm.chat(_CONVERSATIONS, params, _TOOLS))
    calls = [reply for reply in replies if reply.tool_calls]
    assert 0 < len(calls) < len(replies)
    for reply in replies:
        if reply.tool_calls:
            assert reply.content == ""
            [*map(_check_call, reply.tool_calls)]
        else:
            assert json.loads(reply.content)["k"] in (True, False)


@pytest.mark.parametrize(
    ("choice", "tools", "parser", "message"),
    [
        (
            {"type": "function", "name": "nope"},
            _TOOLS,
            "glm4",
            "names 'nope', which is not offered",
        ),
        ("required", None, "glm4", "demands a call, and no tools are offered"),
        ("required", _TOOLS, "chatglm2", "no way is known in which this model calls tools"),
        (
            "required",
            [{"name": "f", "parameters": {"properties": {"a": {"uniqueItems": True}}}}],
            "glm4",
            "The parameters of tool 'f': uniqueItems at #/properties/a is not supported",
        ),
        (
            "required",
            [{"name": "f", "parameters": {"properties": {"a-b": {"type": "string"}}}}],
            "chatglm3",
            "The parameters of tool 'f': 'a-b' cannot be the name of an argument in Python",
        ),
        (
            "required",
            [{"name": "f", "parameters": {"properties": {"a": {"allOf": []}}}}],
            "chatglm3",
            "The parameters of tool 'f': allOf at #/properties/a cannot be kept",
        ),
        ("required", [{"name": "f", "parameters": []}], "glm4", "must be a JSON schema, got []"),
        (
            "required",
            [{"name": "f", "parameters": {"type": "array"}}],
            "glm4",
            "must be of type object, got 'array'",
        ),
    ],
)
def test_a_call_that_cannot_be_demanded_is_one_sentence(
    open_llm: Callable[..., LLM], choice: Any, tools: Any, parser: str, message: str
) -> None:
    with open_llm(tool_call_parser=parser) as llm:
        output = llm.chat(_MESSAGES, SamplingParams(max_tokens=5), tools, choice)
    assert output.finish_reason == "error"
    assert message in str(output.error)


def test_a_text_that_is_no_conversation_cannot_be_answered_by_a_call(
    open_llm: Callable[..., LLM],
) -> None:
    with open_llm(apply_chat_template=False) as llm:
        (last,) = llm.stream("x", SamplingParams(max_tokens=5), None, "required")
    assert "only an answer to a conversation can be" in str(last.error)
