"""How many tokens a text has at least, told by its length."""

import random

import pytest

from mindformers_glm.core.errors import PromptError
from mindformers_glm.tokenizer import GlmTokenizer, load_tokenizer
from tests.conftest import MINI

pytestmark = pytest.mark.skipif(not MINI.is_dir(), reason="the shipped checkpoint is not there")


@pytest.fixture(scope="module")
def tokenizer() -> GlmTokenizer:
    return load_tokenizer(MINI)


def test_no_text_has_fewer_tokens(tokenizer: GlmTokenizer) -> None:
    rng = random.Random(0)
    pieces = ["a", " ", "\n", "北京", "<|user|>", "1234", "{}", "the ", "\U0001f600", "=" * 40]
    for _ in range(300):
        text = "".join(rng.choices(pieces, k=rng.randint(0, 60)))
        assert tokenizer.vocabulary.least_tokens(text) <= len(tokenizer.encode(text))
    longest = max(map(tokenizer.vocabulary.bytes_of, range(tokenizer.num_token_ids)), key=len)
    assert tokenizer.vocabulary.least_tokens("x" * 100_000) >= 100_000 // max(len(longest), 20)


def test_what_is_too_long_is_not_tokenized(
    tokenizer: GlmTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> list[int]:
        raise AssertionError("it was tokenized")

    monkeypatch.setattr(tokenizer.vocabulary, "encode", refuse)
    monkeypatch.setattr(tokenizer.vocabulary, "encode_segments", refuse)
    with pytest.raises(PromptError, match=r"100000 characters, which are \d+ tokens or more"):
        tokenizer.encode("x" * 100_000, 100)
    with pytest.raises(PromptError, match="max_model_len=100"):
        tokenizer.encode_chat([{"role": "user", "content": "北" * 100_000}], max_tokens=100)


def test_what_may_fit_is_tokenized(tokenizer: GlmTokenizer) -> None:
    assert tokenizer.encode("hello " * 30, 3_000) == tokenizer.encode("hello " * 30)
