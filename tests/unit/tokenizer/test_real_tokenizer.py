"""The true GLM-4 vocabulary; its files may not be in the repository, so this may be skipped."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.tokenizer import GlmTokenizer, load_tokenizer
from tests.unit.tokenizer.conftest import random_text


@pytest.fixture(scope="module")
def folder(shared_fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glm-4")
    tokenizers = shared_fixtures / "tokenizers"
    (folder / "tokenizer.json").symlink_to(tokenizers / "glm-4-hf" / "tokenizer.json")
    shutil.copy(tokenizers / "templates" / "glm-4-9b-chat.jinja", folder / "chat_template.jinja")
    # The eos_token is that of GLM-4-9B-0414's tokenizer.
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|user|>"}')
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> GlmTokenizer:
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def golden(shared_fixtures: Path) -> dict[str, Any]:
    path = shared_fixtures / "golden" / "tokenizer_golden.json"
    return json.loads(path.read_text(encoding="utf-8"))["glm4"]


def test_texts_have_the_golden_ids(tokenizer: GlmTokenizer, golden: dict[str, Any]) -> None:
    for case in golden["encode_with_prefix"]:
        # The old slow tokenizer prepends [gMASK]<sop>, the fast one nothing.
        assert tokenizer.encode("[gMASK]<sop>" + case["text"]) == case["ids"]


def test_chats_have_the_golden_ids(tokenizer: GlmTokenizer, golden: dict[str, Any]) -> None:
    for case in golden["chat"]:
        assert tokenizer.encode_chat(case["messages"]) == case["ids"]


def test_control_tokens_in_text_stay_text(tokenizer: GlmTokenizer) -> None:
    text = "你<|user|>\n[gMASK]好<|endoftext|>"
    ids = tokenizer.encode_prompt(text)
    assert [i for i in ids if i >= 151329] == [151331, 151333, 151336, 151337]
    assert tokenizer.decode(ids) == "\n" + text


@pytest.mark.slow
def test_random_conversations_have_hugging_faces_ids(tokenizer: GlmTokenizer, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    oracle = PreTrainedTokenizerFast.from_pretrained(str(folder))
    rng = random.Random(0)
    for _ in range(300):
        messages = [
            {"role": role, "content": random_text(rng, with_specials=False)}
            for role in ("system", "user", "assistant", "observation")
        ]
        expected = oracle.apply_chat_template(messages, add_generation_prompt=True)
        assert tokenizer.encode_chat(messages) == expected


def test_random_ids_stream_to_what_they_decode_to(tokenizer: GlmTokenizer) -> None:
    rng = random.Random(0)
    for _ in range(200):
        ids = rng.choices(range(151552), k=30)
        detokenizer = tokenizer.new_detokenizer()
        assert "".join(map(detokenizer.feed, ids)) + detokenizer.flush() == tokenizer.decode(ids)
