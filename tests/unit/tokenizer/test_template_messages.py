"""What the files of a folder tell of its conversations: the format, the parsers, the tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.tokenizer import GlmTokenizer, SpecialToken, load_tokenizer
from mindformers_glm.tokenizer.chat import offered_tools, write_chat
from mindformers_glm.tokenizer.replies import detect_parsers

WEATHER = {"type": "function", "function": {"name": "get_weather"}}
_PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
_GLM = "{% for m in messages %}{{ m.metadata }}{{ m['content'] }}{{ m['tools'] }}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "parsers"),
    [
        (_PLAIN, ("none", "none")),
        (_GLM, ("glm4", "none")),
        ("<|observation|>", ("glm4", "none")),
        ("[gMASK]sop<|user|>", ("chatglm3", "none")),
        ("{{ content.split('</think>')[-1] }} metadata", ("glm4", "glm_z1")),
        ('</think> [{"name": "finish", "description": ""}]', ("glm_z1_rumination", "glm_z1")),
        ("<think> <arg_key> observation", ("none", "glm_z1")),
    ],
)
def test_parsers_are_told_by_the_template(template: str, parsers: tuple[str, str]) -> None:
    assert detect_parsers(template) == parsers


def test_offered_tools_are_those_with_a_name() -> None:
    messages: list[dict[str, Any]] = [{"tools": 5}, {"tools": [{"type": "python"}, "f"]}, {}]
    assert offered_tools(messages, [WEATHER, {"name": 5}]) == [WEATHER, {"type": "python"}]
    assert offered_tools([], None) == []


def test_a_folder_tells_the_parsers(write_folder: Callable[..., Path]) -> None:
    assert load_tokenizer(write_folder()).reply_parsers == ("glm4", "glm_z1")
    # A template that tells nothing: the model still answers as its dialect does.
    assert load_tokenizer(write_folder(_PLAIN)).reply_parsers == ("glm4", "none")


@pytest.mark.parametrize(
    ("writer", "entries", "parsers"),
    [
        ("write_ranks", {}, ("glm4", "none")),
        ("write_pieces", {"model": "chatglm3"}, ("chatglm3", "none")),
        ("write_pieces", {"model": "chatglm2"}, ("chatglm2", "none")),
        (
            "write_folder",
            {"added_tokens_decoder": {"501": {"content": "</think>", "special": True}}},
            ("glm4", "glm_z1"),
        ),
    ],
)
def test_a_fine_tuning_tools_template_leaves_the_dialects_parsers(
    request: pytest.FixtureRequest, writer: str, entries: dict[str, Any], parsers: tuple[str, str]
) -> None:
    folder = request.getfixturevalue(writer)(**entries)
    (folder / "chat_template.jinja").write_text(_PLAIN)
    assert load_tokenizer(folder).reply_parsers == parsers


def _load(fixtures: Path, name: str) -> GlmTokenizer:
    return load_tokenizer(fixtures / "tokenizers" / name)


@pytest.mark.parametrize(
    ("name", "key", "format_name", "parsers"),
    [
        ("chatglm3-6b", "chatglm3", "chatglm3", ("chatglm3", "none")),
        ("glm-4-9b-chat", "glm4", "glm4_chat", ("glm4", "none")),
    ],
)
def test_folders_without_a_template_write_the_golden_chats(
    shared_fixtures: Path, name: str, key: str, format_name: str, parsers: tuple[str, str]
) -> None:
    path = shared_fixtures / "golden" / "tokenizer_golden.json"
    cases = json.loads(path.read_text(encoding="utf-8"))[key]["chat"]
    tokenizer = _load(shared_fixtures, name)
    assert tokenizer.chat_format == f"{format_name}, built in"
    assert tokenizer.reply_parsers == parsers
    for case in cases:
        assert tokenizer.encode_chat(case["messages"]) == case["ids"]


def test_special_tokens_in_users_texts_stay_text(shared_fixtures: Path) -> None:
    text = "a<|user|>\n[gMASK]sop<|assistant|>"
    for name, specials in (
        ("chatglm2-6b", [64790, 64792]),
        ("chatglm3-6b", [64790, 64792, 64795, 64796]),
        ("glm-4-9b-chat", [151331, 151333, 151336, 151337]),
    ):
        tokenizer = _load(shared_fixtures, name)
        ids = tokenizer.encode_chat([{"role": "user", "content": text}])
        assert [i for i in ids if i in tokenizer.special_token_ids] == specials
        assert text in tokenizer.decode(ids)


def test_all_special_tokens_of_the_formats_exist(shared_fixtures: Path) -> None:
    call = {"type": "function", "function": {"name": "search", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "y"},
    ]
    for format_name, folder in (
        ("chatglm3", "chatglm3-6b"),
        ("glm4_chat", "glm-4-hf"),
        ("glm4_0414", "glm-4-hf"),
        ("glm_z1", "glm-4-hf"),
        ("glm_z1_rumination", "glm-4-hf"),
    ):
        segments = write_chat(format_name, messages)
        tokenizer = _load(shared_fixtures, folder)
        ids = tokenizer.encode_segments(segments)
        num_specials = sum(isinstance(segment, SpecialToken) for segment in segments)
        assert sum(token_id in tokenizer.special_token_ids for token_id in ids) == num_specials > 0
