"""Single tokens as text, and the ways in which a word is spelled."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mindformers_glm.core.errors import PromptError
from mindformers_glm.tokenizer import GlmTokenizer, load_tokenizer

Writer = Callable[..., Path]


@pytest.fixture
def fast(write_folder: Writer) -> GlmTokenizer:
    return load_tokenizer(write_folder())


def test_a_token_alone_is_its_text(fast: GlmTokenizer) -> None:
    token_ids = fast.encode("Hello world 你好")
    assert "".join(map(fast.decode_token, token_ids)) == "Hello world 你好"
    assert fast.decode_token(fast.encode("<|user|>")[0]) == "<|user|>"
    assert fast.decode_token(fast.num_token_ids + 5) == ""


def test_half_a_character_is_shown_as_such(fast: GlmTokenizer) -> None:
    token_ids = fast.encode("𓂀")
    assert len(token_ids) > 1
    assert {fast.decode_token(token_id)[:1] for token_id in token_ids} == {"\ufffd"}


@pytest.mark.parametrize("word", ["world", " world", "Hello", "123", "你好", "!", "zqj"])
def test_a_word_is_spelled_with_and_without_a_blank(fast: GlmTokenizer, word: str) -> None:
    spellings = fast.spell_word(word)
    texts = [fast.decode(ids) for ids in spellings]
    assert texts in ([word.strip()], [word.strip(), " " + word.strip()])
    for text in (word.strip(), " " + word.strip()):
        written = fast.encode(text)
        assert any(written[-len(ids) :] == ids for ids in spellings)


def test_special_tokens_and_blanks_are_words_too(fast: GlmTokenizer) -> None:
    assert fast.spell_word("<|user|>")[0] == fast.encode("<|user|>")
    assert fast.decode(fast.spell_word("\n")[0]) == "\n"


def test_a_word_of_ranks_is_spelled_without_the_prefix(write_ranks: Writer) -> None:
    ranks = load_tokenizer(write_ranks())
    assert ranks.decode(ranks.spell_word("world")[0]) == "world"
    assert len(ranks.spell_word("world")[0]) < len(ranks.encode("world"))


def test_sentencepiece_spells_a_word_as_within_a_text(write_pieces: Writer) -> None:
    pieces = load_tokenizer(write_pieces())
    inside = pieces.encode("好北京")
    (spelling,) = pieces.spell_word("北京")
    assert inside[-len(spelling) :] == spelling
    assert pieces.decode_token(pieces.num_token_ids - 1) == "<|observation|>"


def test_half_a_surrogate_pair_is_no_word(fast: GlmTokenizer) -> None:
    with pytest.raises(PromptError, match="not valid Unicode"):
        fast.spell_word("\ud800")
