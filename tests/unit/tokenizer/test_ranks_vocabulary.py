"""A file of ranks against the same vocabulary as a tokenizer.json."""

import base64
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.core.errors import CheckpointError, PromptError
from mindformers_glm.tokenizer import SpecialToken, load_tokenizer
from tests.unit.tokenizer.conftest import SPECIAL_TOKENS, Writer, encode_prompt, random_text


def test_ids_are_those_of_the_same_vocabulary_in_a_tokenizer_json(
    write_ranks: Writer, write_folder: Writer
) -> None:
    ranks, fast = load_tokenizer(write_ranks()), load_tokenizer(write_folder())
    prefix = fast.encode("[gMASK]<sop>")
    rng = random.Random(0)
    for _ in range(1000):
        text = random_text(rng, with_specials=True)
        assert ranks.encode(text) == prefix + fast.encode(text)
        segments = [SpecialToken("<|user|>"), text, SpecialToken("<|assistant|>"), text, text]
        assert ranks.encode_segments(segments) == fast.encode_segments(segments)


def test_it_says_what_the_engine_asks_for(write_ranks: Writer, write_folder: Writer) -> None:
    ranks, fast = load_tokenizer(write_ranks()), load_tokenizer(write_folder())
    assert ranks.num_token_ids == fast.num_token_ids
    assert ranks.special_token_ids == fast.special_token_ids
    assert ranks.eos_token_ids == tuple(fast.encode("<|endoftext|>"))
    assert ranks.has_chat_template


def test_random_ids_stream_to_what_the_same_vocabulary_decodes(
    write_ranks: Writer, write_folder: Writer
) -> None:
    ranks, fast = load_tokenizer(write_ranks()), load_tokenizer(write_folder())
    rng = random.Random(1)
    for _ in range(300):
        token_ids = rng.choices(range(ranks.num_token_ids + 5), k=rng.randint(0, 40))
        detokenizer = ranks.new_detokenizer()
        text = "".join(map(detokenizer.feed, token_ids)) + detokenizer.flush()
        assert text == ranks.decode(token_ids) == fast.decode(token_ids)


def test_a_template_writes_the_chat_where_there_is_one(
    write_ranks: Writer, write_folder: Writer
) -> None:
    fast = load_tokenizer(write_folder())
    template = (write_folder() / "chat_template.jinja").read_text(encoding="utf-8")
    ranks = load_tokenizer(write_ranks(chat_template=template))
    rng = random.Random(2)
    for _ in range(100):
        text = random_text(rng, with_specials=True)
        assert encode_prompt(ranks, text) == encode_prompt(fast, text)


def test_half_a_surrogate_pair_has_the_sentence_of_tokenizer_json(
    write_ranks: Writer, write_folder: Writer
) -> None:
    sentences = []
    for folder in (write_ranks(), write_folder()):
        with pytest.raises(PromptError) as caught:
            load_tokenizer(folder).encode("a\ud800b")
        sentences.append(str(caught.value))
    assert sentences[0] == sentences[1]


def test_blanks_in_a_row_are_encoded_up_to_a_limit(write_ranks: Writer) -> None:
    tokenizer = load_tokenizer(write_ranks())
    text = "\t" * 250_000 + " " * 250_000 + "x" + " " * 500_000
    assert tokenizer.decode(tokenizer.encode(text)) == text
    with pytest.raises(PromptError, match="more than 500,000 white-space characters in a row"):
        tokenizer.encode("x" + text[:500_000] + "\n" + "x")


def _model(folder: Path, change: Callable[[bytes], bytes]) -> None:
    path = folder / "tokenizer.model"
    path.write_bytes(change(path.read_bytes()))


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _drop_line(content: bytes, number: int) -> bytes:
    lines = content.splitlines(keepends=True)
    return b"".join(lines[:number] + lines[number + 1 :])


TOKEN = base64.b64encode(b"a")
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut within a line": (
        lambda folder: _model(folder, lambda content: content.rstrip().rsplit(b" ", 1)[0]),
        "line 400 is not a token in base64 and its rank",
    ),
    "cut between two lines": (
        lambda folder: _model(folder, lambda content: _drop_line(content, 399)),
        "has 399 ranks, but the special tokens of tokenizer_config.json begin at 400",
    ),
    "a line lost": (
        lambda folder: _model(folder, lambda content: _drop_line(content, 7)),
        "line 8 has the rank 8 or a token of another line, where a new token of rank 7 belongs",
    ),
    "not base64": (
        lambda folder: _model(folder, lambda content: content + b"$$$$ 400\n"),
        "line 401 is not a token in base64",
    ),
    "a token twice": (
        lambda folder: _model(folder, lambda content: content + TOKEN + b" 400\n"),
        "line 401 has the rank 400 or a token of another line",
    ),
    "bytes missing": (
        lambda folder: _model(folder, lambda content: TOKEN + b" 0\n"),
        "has no token for 255 of the 256 bytes",
    ),
    "no settings": (
        lambda folder: (folder / "tokenizer_config.json").unlink(),
        "must name the special tokens in added_tokens_decoder, but [gMASK] is not there",
    ),
    "an unknown end": (
        lambda folder: _config(folder, eos_token="<end>"),
        "the eos_token <end> is not among the tokens",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_one_sentence(write_ranks: Writer, damage: str) -> None:
    change, message = DAMAGES[damage]
    folder = write_ranks()
    change(folder)
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_special_tokens_are_special_in_a_prompt_as_it_is(write_ranks: Writer) -> None:
    tokenizer = load_tokenizer(write_ranks())
    ids = tokenizer.encode("".join(SPECIAL_TOKENS))
    assert ids[2:] == sorted(tokenizer.special_token_ids)
