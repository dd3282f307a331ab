import random

import pytest

from mindformers_glm.tokenizer import load_tokenizer
from mindformers_glm.tokenizer.detokenizer import byte_level_alphabet
from tests.unit.tokenizer.conftest import Writer, random_text


def test_the_alphabet_is_that_of_tokenizers() -> None:
    from tokenizers import pre_tokenizers

    alphabet = byte_level_alphabet()
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(alphabet.values()) == list(range(256))
    assert (alphabet["Ġ"], alphabet["Ċ"], alphabet["a"]) == (ord(" "), ord("\n"), ord("a"))


def test_pieces_of_random_tokens_add_up_to_hugging_faces_decode(write_folder: Writer) -> None:
    # Most random tokens are not valid UTF-8 together.
    tokenizer = load_tokenizer(write_folder())
    from transformers import PreTrainedTokenizerFast

    oracle = PreTrainedTokenizerFast.from_pretrained(str(write_folder()))
    rng = random.Random(0)
    for _ in range(500):
        token_ids = rng.choices(range(tokenizer.num_token_ids + 5), k=rng.randint(0, 40))
        detokenizer = tokenizer.new_detokenizer()
        text = "".join(map(detokenizer.feed, token_ids)) + detokenizer.flush()
        assert text == oracle.decode(token_ids, skip_special_tokens=True)
        assert text == tokenizer.decode(token_ids)
        shown = tokenizer.new_detokenizer(skip_special_tokens=False)
        text = "".join(map(shown.feed, token_ids)) + shown.flush()
        assert text == oracle.decode(token_ids, skip_special_tokens=False)


@pytest.mark.parametrize("seed", range(20))
def test_a_text_is_streamed_without_a_broken_character(write_folder: Writer, seed: int) -> None:
    tokenizer = load_tokenizer(write_folder())
    text = random_text(random.Random(seed), with_specials=False) + "👍é好"
    detokenizer = tokenizer.new_detokenizer()
    pieces = [detokenizer.feed(token_id) for token_id in tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert detokenizer.flush() == ""


def test_an_incomplete_character_is_held_until_the_end(write_folder: Writer) -> None:
    tokenizer = load_tokenizer(write_folder())
    emoji = tokenizer.encode("🦀")  # not in the training text, so several tokens
    assert len(emoji) > 2
    detokenizer = tokenizer.new_detokenizer()
    assert {detokenizer.feed(token_id) for token_id in emoji[:-1]} == {""}
    assert detokenizer.flush() == "\ufffd"


def test_special_and_unknown_tokens_have_no_text(write_folder: Writer) -> None:
    tokenizer = load_tokenizer(write_folder())
    detokenizer = tokenizer.new_detokenizer()
    for token_id in (*tokenizer.special_token_ids, tokenizer.num_token_ids, 10**6):
        assert detokenizer.feed(token_id) == ""


def test_an_added_token_that_is_not_special_is_its_own_text(write_folder: Writer) -> None:
    folder = write_folder(
        added_tokens_decoder={"500": {"content": "<工具>", "special": False, "normalized": False}}
    )
    tokenizer = load_tokenizer(folder)
    token_ids = tokenizer.encode("a<工具>b")
    detokenizer = tokenizer.new_detokenizer()
    assert len(token_ids) == 3
    assert "".join(map(detokenizer.feed, token_ids)) == "a<工具>b" == tokenizer.decode(token_ids)
