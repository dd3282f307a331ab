"""JSON that is certain before its end, against the reader of whole objects."""

import json
import random
from typing import Any

import pytest

from mindformers_glm.tokenizer.replies.json_writer import JsonWriter
from mindformers_glm.tokenizer.replies.lenient_json import to_strict_json


def _write(pieces: list[str]) -> JsonWriter:
    writer = JsonWriter()
    for piece in pieces:
        writer.feed(piece)
    return writer


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('{"a": [1, -2.5e3, true], "b": {}, "c": "x\\n\\u5317"}', None),
        ('{ "a" : 1 ,\n "b":[ ] }', None),
        ('{"a": "x\ny\tz"}', '{"a": "x\\u000ay\\u0009z"}'),
        ("{'a': 'it\\'s \"b\"'}", '{"a": "it\'s \\"b\\""}'),
        ('{"a": True, "b": [False, None,], }', '{"a": true, "b": [false, null] }'),
        ("{}", None),
    ],
)
def test_what_is_meant_is_written(text: str, written: str | None) -> None:
    writer = _write(list(text))
    assert (writer.written, writer.unread) == (written or text, "")
    assert json.loads(writer.written) == json.loads(to_strict_json(text))


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ('{"a": "x', '{"a": "x'),
        ('{"a": "x\\', '{"a": "x'),
        ('{"a": "x\\u53', '{"a": "x'),
        ('{"a": 12', '{"a": '),
        ('{"a": 1, ', '{"a": 1'),
        ("", ""),
    ],
)
def test_what_is_not_certain_is_held_back(text: str, written: str) -> None:
    writer = _write(list(text))
    assert writer.written == written
    assert not writer.is_broken


def _random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(7 if depth < 3 else 5)
    if kind == 5:
        return [_random_value(rng, depth + 1) for _ in range(rng.randrange(3))]
    if kind == 6:
        return {f"k{i}": _random_value(rng, depth + 1) for i in range(rng.randrange(3))}
    return rng.choice([1, -0.5, True, None, 'a"b', "it's", "\\", "北\n京", ""])


def test_random_objects_and_broken_ones_are_read_as_whole_ones_are() -> None:
    rng = random.Random(0)
    num_read = 0
    for _ in range(3000):
        text = json.dumps({"a": _random_value(rng)}, ensure_ascii=rng.random() < 0.5)
        for _ in range(rng.randrange(3)):
            place = rng.randrange(len(text) + 1)
            cut = place + rng.randrange(2)
            text = text[:place] + rng.choice(["", ",", "'", '"', "\n", "]", "x", "\\"]) + text[cut:]
        pieces = [text[i : i + 3] for i in range(0, len(text), 3)]
        one, other = _write([text]), _write(pieces)
        assert (one.written, one.unread, one.is_broken) == (
            *(other.written, other.unread),
            other.is_broken,
        )
        try:
            expected = json.loads(to_strict_json(text.strip()))
        except ValueError:
            assert one.is_broken or one._closers or one.unread or not one.written
            continue
        if isinstance(expected, dict):
            num_read += 1
            assert not one.is_broken, text
            assert json.loads(one.written) == expected
    assert num_read > 1000
