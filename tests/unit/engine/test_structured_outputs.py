"""What a caller may say of the answer's form, in vLLM's and in OpenAI's words."""

import re
from typing import Any

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.engine.structured_outputs import (
    MAX_GROUPS,
    MAX_SCHEMA_LENGTH,
    StructuredOutputsParams,
    structured_outputs_of,
)

_SCHEMA = {"type": "object", "properties": {"b": {"type": "integer"}, "a": {"type": "string"}}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of json, regex, choice, grammar, json_object, got none"),
        ({"json_object": False}, "got none"),
        ({"regex": "a", "choice": ["b"]}, "got regex and choice"),
        ({"json": _SCHEMA, "json_object": True}, "got json and json_object"),
        ({"regex": ""}, "regex must be a non-empty text, got ''"),
        ({"regex": 5}, "regex must be a non-empty text, got 5"),
        ({"grammar": ["a"]}, "grammar must be a non-empty text"),
        ({"regex": "\ud800"}, "regex is not valid Unicode"),
        ({"choice": "abc"}, "choice must be a list of texts, got 'abc'"),
        ({"choice": []}, "choice must be a list of texts"),
        ({"choice": ["a", ""]}, "choice must hold non-empty texts, got ''"),
        ({"choice": [1]}, "choice must hold non-empty texts, got 1"),
        ({"json": "{"}, "The JSON schema is no JSON"),
        ({"json": "[1]"}, "A JSON schema must be an object, got [1]"),
        ({"json": True}, "A JSON schema must be an object, got true"),
        ({"json": {"const": float("nan")}}, "The JSON schema is no JSON"),
        ({"json": {"const": {1, 2}}}, "The JSON schema is no JSON"),
        ({"json_object": "yes"}, "json_object must be True or False, got 'yes'"),
        ({"json_object": True, "disable_any_whitespace": 1.5}, "disable_any_whitespace must be"),
        ({"structural_tag": "x"}, "no argument 'structural_tag': this version does not offer it"),
        ({"json_schema": _SCHEMA}, "it is called json here"),
    ],
)
def test_what_is_no_form_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        SamplingParams(structured_outputs=given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"json": {"const": "x" * MAX_SCHEMA_LENGTH}}, "characters, more than 131,072"),
        ({"regex": "a" * 20_000}, "regex has 20,000 characters, more than 16,384"),
        ({"grammar": "start: " + '"a" ' * 20_000}, "grammar has 80,007 characters"),
        ({"regex": "(a)" * (MAX_GROUPS + 1)}, "regex has 401 groups and rules, more than 400"),
        ({"grammar": "\n".join(f"r{i}: r{i + 1}" for i in range(500))}, "grammar has 500 groups"),
        ({"grammar": "\n".join(f"r{i} ::= r{i + 1}" for i in range(500))}, "has 500 groups"),
        ({"choice": ["ab"] * 10_001}, "choice has 10,001 texts"),
    ],
)
def test_what_is_too_large_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        StructuredOutputsParams(**given)


@pytest.mark.parametrize("depth", [101, 5_000])
def test_a_schema_nested_too_deeply_is_refused(depth: int) -> None:
    with pytest.raises(ConfigError, match="nested"):
        StructuredOutputsParams(json='{"items":' * depth + "{}" + "}" * depth)


def test_braces_within_texts_do_not_count_as_depth() -> None:
    text = '{"const": "' + "{" * 200 + '\\"["}'
    assert StructuredOutputsParams(json=text).json == text


def test_a_schema_keeps_the_order_of_its_keys_as_object_and_as_text() -> None:
    from_object = StructuredOutputsParams(json=_SCHEMA)
    assert from_object == StructuredOutputsParams(json=from_object.json)
    assert str(from_object.json).index('"b"') < str(from_object.json).index('"a"')
    assert hash(from_object) == hash(StructuredOutputsParams(json=_SCHEMA))


@pytest.mark.parametrize(
    ("request_fields", "expected"),
    [
        ({}, None),
        ({"response_format": None, "guided_json": None, "structured_outputs": None}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (
            {"response_format": {"type": "json_object", "schema": {"type": "array"}}},
            {"json": {"type": "array"}},
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "strict": True, "schema": _SCHEMA},
                }
            },
            {"json": _SCHEMA},
        ),
        ({"guided_json": _SCHEMA}, {"json": _SCHEMA}),
        ({"guided_regex": "a+"}, {"regex": "a+"}),
        ({"guided_choice": ["a", "b"]}, {"choice": ("a", "b")}),
        ({"guided_grammar": 'start: "a"'}, {"grammar": 'start: "a"'}),
        ({"structured_outputs": {"regex": "a+", "json": None}}, {"regex": "a+"}),
        ({"structured_outputs": {"choice": ["a"]}, "model": "x"}, {"choice": ("a",)}),
    ],
)
def test_fields_of_a_request_become_the_params(
    request_fields: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    wanted = None if expected is None else StructuredOutputsParams(**expected)
    assert structured_outputs_of(request_fields) == wanted


@pytest.mark.parametrize(
    ("request_fields", "message"),
    [
        ({"response_format": "json"}, 'response_format must be {"type": "text"}'),
        ({"response_format": {"type": "structural_tag"}}, "response_format must be"),
        ({"response_format": {"type": "json_schema"}}, "of type json_schema needs"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": "x"}}},
            "of type json_schema needs",
        ),
        ({"guided_json": _SCHEMA, "guided_regex": "a"}, "guided_json and guided_regex both give"),
        (
            {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "response_format and structured_outputs both give",
        ),
        ({"structured_outputs": "json"}, "structured_outputs must be StructuredOutputsParams or"),
        ({"guided_choice": "a"}, "choice must be a list of texts"),
    ],
)
def test_fields_that_say_no_form_are_refused(request_fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        structured_outputs_of(request_fields)
