"""Tokenizer files that would take minutes or end in a traceback."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.core.errors import GlmError
from mindformers_glm.tokenizer.loading import load_tokenizer
from tests.unit.tokenizer.conftest import Writer


def refusal(folder: Path) -> str:
    begin = time.process_time()
    with pytest.raises(GlmError) as problem:
        load_tokenizer(folder)
    assert time.process_time() - begin < 5
    message = str(problem.value)
    assert "\n" not in message
    assert len(message) < 2000
    return message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"additional_special_tokens": 5}, "must be a list of tokens, got 5"),
        ({"additional_special_tokens": True}, "must be a list of tokens"),
        ({"additional_special_tokens": "abc"}, "must be a list of tokens"),
        ({"additional_special_tokens": [["a"]]}, "must be a text"),
        ({"additional_special_tokens": ["x" * 5000]}, "has 5000 characters"),
        ({"eos_token": {"content": "x" * 9_000_000}}, "has 9000000 characters"),
        ({"added_tokens_decoder": {"300": {"content": "y" * 5000, "special": True}}}, "5000"),
        ({"additional_special_tokens": [f"<{n}>" for n in range(20_000)]}, "than 10000"),
        ({"added_tokens_decoder": [1]}, "must map ids to tokens"),
    ],
)
def test_a_tokenizer_config(write_folder: Writer, config: dict[str, Any], words: str) -> None:
    assert words in refusal(write_folder(**config))


def test_a_panic_of_the_library(write_folder: Writer, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write_folder()
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["continuing_subword_prefix"] = "longer than any token of this vocabulary"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "cannot be read as a tokenizer (the tokenizers library fails, " in refusal(folder)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("damage", [b"\xff", b"\xe5\x8c"])
def test_pieces_that_are_no_text(write_pieces: Writer, damage: bytes) -> None:
    folder = write_pieces()
    path = folder / "tokenizer.model"
    path.write_bytes(path.read_bytes().replace(b"world", damage.ljust(5, b"a"), 1))
    assert "is incomplete or damaged" in refusal(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_pipe(write_folder: Writer, name: str) -> None:
    folder = write_folder()
    (folder / name).unlink()
    os.mkfifo(folder / name)
    assert "it is no ordinary file" in refusal(folder)


def test_a_special_token_that_is_begun_at_the_end_of_a_text_stays_text(
    write_folder: Writer,
) -> None:
    tokenizer = load_tokenizer(
        write_folder(chat_template="{% for m in messages %}{{ m.content }}user|>{% endfor %}")
    )
    for text in ("a <|", "<|user|><|", "<|user|", "<", "[gMA", "<|user|>", "[gMASK]<sop"):
        ids = tokenizer.encode_chat([{"role": "user", "content": text}])
        assert not set(ids) & tokenizer.special_token_ids
