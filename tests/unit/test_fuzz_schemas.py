"""Random schemas on a network of random logits: every answer that is finished is valid."""

import json
import random
from typing import Any

import pytest

pytest.importorskip("llguidance")

from fuzz_schemas import MINI, answer_schemas, judge, make_random_engine
from random_schemas import find_fault, make_schema

from mindformers_glm.engine.constraints import Constraint
from mindformers_glm.tokenizer import load_tokenizer

_COUNT = 60


def _schemas() -> list[dict[str, Any]]:
    return [make_schema(random.Random(f"schema {number}")) for number in range(_COUNT)]


def test_every_finished_answer_is_valid() -> None:
    engine = make_random_engine(load_tokenizer(MINI), seed=0)
    num_finished = 0
    for schema, output in zip(_schemas(), answer_schemas(engine, _schemas()), strict=True):
        for reason, fault in judge(output, schema):
            assert fault is None, json.dumps(schema)
            num_finished += reason == "stop"
    assert num_finished > 0.8 * _COUNT
    assert engine.num_drafted > engine.num_accepted > 0
    assert engine.pool.num_free == engine.pool.num_blocks


def test_the_check_finds_answers_without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    compute_masks = Constraint.compute_masks

    def compute_open_masks(constraint: Constraint, draft: Any) -> Any:
        masks = compute_masks(constraint, draft)
        for mask in masks:
            mask.allowed[:5] = True  # five tokens more
        return masks

    monkeypatch.setattr(Constraint, "compute_masks", compute_open_masks)
    monkeypatch.setattr(Constraint, "_note_error", lambda constraint: None)
    engine = make_random_engine(load_tokenizer(MINI), seed=0, prompt_lookup_num_tokens=0)
    outputs = answer_schemas(engine, _schemas()[:20], max_tokens=40)
    faults = [f for s, o in zip(_schemas(), outputs, strict=False) for _, f in judge(o, s)]
    assert any(faults)


@pytest.mark.parametrize(
    ("value", "schema"),
    [
        ({"a": 1}, {"type": "array"}),
        (True, {"type": "integer"}),
        (1.5, {"type": "integer"}),
        ({}, {"required": ["a"]}),
        ({"a": 1, "b": 2}, {"properties": {"a": {}}, "additionalProperties": False}),
        ([1, "x"], {"items": {"type": "integer"}}),
        ("abc", {"maxLength": 2}),
        ("b", {"pattern": "^a"}),
        (7, {"multipleOf": 2}),
        (1, {"const": True}),
        (3, {"anyOf": [{"type": "string"}, {"maximum": 2}]}),
        ({"next": {"next": 1}}, {"properties": {"next": {"type": "object", "$ref": "#"}}}),
    ],
)
def test_the_checker_finds_what_is_wrong(value: Any, schema: dict[str, Any]) -> None:
    assert find_fault(value, schema) is not None
