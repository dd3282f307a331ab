"""ChatGLM2's and ChatGLM3's kind of tokenizer against the sentencepiece library itself."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from mindformers_glm.core.errors import CheckpointError, PromptError, UnsupportedError
from mindformers_glm.tokenizer import GlmTokenizer, SpecialToken, load_tokenizer
from tests.unit.tokenizer.conftest import Writer, encode_prompt, random_text, train_sentencepiece

CHATGLM2 = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"]
CHATGLM3 = [*CHATGLM2, "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]


def _stream(tokenizer: GlmTokenizer, token_ids: list[int]) -> list[str]:
    detokenizer = tokenizer.new_detokenizer()
    return [*map(detokenizer.feed, token_ids), detokenizer.flush()]


@pytest.mark.parametrize(("model", "names"), [("chatglm2", CHATGLM2), ("chatglm3", CHATGLM3)])
def test_special_ids_come_after_the_pieces(
    write_pieces: Writer, pieces: SentencePieceProcessor, model: str, names: list[str]
) -> None:
    tokenizer = load_tokenizer(write_pieces(model))
    after = list(range(pieces.get_piece_size(), pieces.get_piece_size() + len(names)))
    assert tokenizer.encode_segments([SpecialToken(name) for name in names]) == after
    assert tokenizer.num_token_ids == after[-1] + 1
    assert tokenizer.special_token_ids == {0, 1, 2, *after}
    ends = [name for name in ("<|user|>", "<|observation|>") if name in names]
    assert tokenizer.eos_token_ids == (2, *(after[names.index(name)] for name in ends))
    assert tokenizer.chat_format == f"{model}, built in"
    assert tokenizer.has_chat_template


def test_texts_have_the_librarys_ids_after_the_prefix(
    write_pieces: Writer, pieces: SentencePieceProcessor
) -> None:
    tokenizer = load_tokenizer(write_pieces())
    prefix = tokenizer.encode_segments([SpecialToken("[gMASK]"), SpecialToken("sop")])
    rng = random.Random(0)
    for _ in range(300):
        text = random_text(rng, with_specials=True) + rng.choice(["", "sop", "<s>", "<0x0A>"])
        assert tokenizer.encode(text) == prefix + pieces.encode(text)


def test_each_text_segment_begins_anew(
    write_pieces: Writer, pieces: SentencePieceProcessor
) -> None:
    tokenizer = load_tokenizer(write_pieces())
    (user,) = tokenizer.encode_segments([SpecialToken("<|user|>")])
    found = tokenizer.encode_segments([SpecialToken("<|user|>"), "\n", "", "你好<|user|>"])
    assert found == [user, *pieces.encode("\n"), *pieces.encode("你好<|user|>")]
    assert user not in found[1:]


def test_random_ids_stream_to_what_the_library_decodes(
    write_pieces: Writer, pieces: SentencePieceProcessor
) -> None:
    # Most byte pieces are no character together. Control tokens are below: ours have no text.
    tokenizer = load_tokenizer(write_pieces())
    rng = random.Random(0)
    for _ in range(2000):
        texts = range(259, pieces.get_piece_size())
        byte_pieces = range(3, 259)
        pool = rng.choice([texts, byte_pieces, range(3, pieces.get_piece_size())])
        token_ids = rng.choices(pool, k=rng.randint(0, 20))
        expected = pieces.decode(token_ids)
        assert "".join(_stream(tokenizer, token_ids)) == expected
        assert tokenizer.decode(token_ids) == expected


def test_texts_come_back_except_for_sentencepieces_own_blank(write_pieces: Writer) -> None:
    tokenizer = load_tokenizer(write_pieces())
    rng = random.Random(1)
    for _ in range(500):
        text = rng.choice(["", " ", "   "]) + random_text(rng, with_specials=True)
        text += "".join(chr(rng.randrange(0xD800)) for _ in range(5))
        streamed = "".join(_stream(tokenizer, tokenizer.encode(text)))
        assert streamed == tokenizer.decode(tokenizer.encode(text)) == text.replace("▁", " ")
    assert tokenizer.decode(tokenizer.encode("a▁b")) == "a b"


def test_the_blank_before_each_text_is_taken_away_again(write_pieces: Writer) -> None:
    tokenizer = load_tokenizer(write_pieces())
    segments = ["Hello", SpecialToken("<|assistant|>"), " world", SpecialToken("eop"), "你好"]
    assert tokenizer.decode(tokenizer.encode_segments(segments)) == "Hello world你好"


def test_no_character_goes_on_after_a_special_token(write_pieces: Writer) -> None:
    tokenizer = load_tokenizer(write_pieces())
    e4, bd, a0 = (3 + byte for byte in "你".encode())  # byte pieces follow <unk>, <s>, </s>
    assert tokenizer.decode([e4, bd, a0]) == "你"
    for special in (2, *tokenizer.encode_segments([SpecialToken("<|user|>")])):
        assert _stream(tokenizer, [e4, bd, special, a0]) == ["", "", "\ufffd\ufffd", "\ufffd", ""]


def test_special_and_unknown_ids_have_no_text(write_pieces: Writer) -> None:
    tokenizer = load_tokenizer(write_pieces())
    ids = [*sorted(tokenizer.special_token_ids), tokenizer.num_token_ids, 10**6]
    assert tokenizer.decode(ids) == ""


def test_half_a_surrogate_pair_is_one_sentence(write_pieces: Writer) -> None:
    with pytest.raises(PromptError, match="not valid Unicode text"):
        load_tokenizer(write_pieces()).encode("a\ud800b")


def test_a_template_writes_the_chat_where_there_is_one(
    write_pieces: Writer, pieces: SentencePieceProcessor
) -> None:
    template = "[gMASK]sop{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}eop"
    tokenizer = load_tokenizer(write_pieces(chat_template=template))
    text = "<|assistant|> philosophy sop"
    names = ("[gMASK]", "sop", "<|user|>", "eop")
    gmask, sop, user, eop = (tokenizer.encode_segments([SpecialToken(name)])[0] for name in names)
    assert encode_prompt(tokenizer, text) == [gmask, sop, user, *pieces.encode("\n" + text), eop]


@pytest.mark.parametrize(("line_end", "is_used"), [(" \n ", False), ("\n ", False), ("\n", True)])
def test_the_templates_that_came_with_chatglm3_are_not_used(
    write_pieces: Writer, line_end: str, is_used: bool
) -> None:
    # As texts they look right, but their blanks give other ids than the model's own code.
    template = (
        "{% for m in messages %}{% if loop.first %}[gMASK]sop{% endif %}<|{{ m.role }}|>LINE_END"
        "{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    tokenizer = load_tokenizer(write_pieces(chat_template=template.replace("LINE_END", line_end)))
    assert (tokenizer.chat_format == "in tokenizer_config.json") == is_used


@pytest.mark.parametrize(
    ("files", "num_special"),
    [
        ({"tokenization_chatglm.py": "special = ['[MASK]', '<|user|>']"}, 9),
        ({"tokenization_chatglm.py": "special = ['[MASK]']"}, 5),
        ({"config.json": '{"_name_or_path": "THUDM/chatglm3-6b-32k"}'}, 9),
        ({"config.json": '{"_name_or_path": "/models/ChatGLM2-6B"}'}, 5),
        ({"tokenizer_config.json": '{"chat_template": "<|{{ messages[0].role }}|>"}'}, 9),
        (
            {
                "tokenizer_config.json": '{"added_tokens_decoder": {"336": {"content": "<|user|>"}'
                ', "2": {"content": "</s>"}}}'
            },
            9,
        ),
    ],
)
def test_the_generation_is_told_by_any_file_that_knows_it(
    write_pieces: Writer, pieces: SentencePieceProcessor, files: dict[str, str], num_special: int
) -> None:
    folder = write_pieces(name_or_path="/somewhere/else")
    for name, content in files.items():
        (folder / name).write_text(content)
    assert load_tokenizer(folder).num_token_ids == pieces.get_piece_size() + num_special


def _cut(share: float) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        content = (folder / "tokenizer.model").read_bytes()
        (folder / "tokenizer.model").write_bytes(content[: int(len(content) * share)])

    return cut


def _without_normalizer(folder: Path) -> None:
    # The last two fields are the trainer's and the normalizer's settings; the file ends between.
    content = (folder / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(content[: content.rindex(b"\x1a")])


def _other_piece(folder: Path) -> None:
    added = {"336": {"content": "<|assistant|>"}}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"name_or_path": "chatglm3", "added_tokens_decoder": added})
    )


def _no_name(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut(0.3), "tokenizer.model cannot be read as a sentencepiece model"),
        (_cut(0.97), "tokenizer.model cannot be read as a sentencepiece model"),
        (_other_piece, "has <|assistant|> as 336, which is not a token of this ChatGLM"),
        (_no_name, "does not tell whether its tokenizer is that of ChatGLM2 or of ChatGLM3"),
    ],
)
def test_a_damaged_folder_is_one_sentence(
    write_pieces: Writer, damage: Callable[[Path], None], message: str
) -> None:
    folder = write_pieces()
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_its_last_field_is_refused(write_pieces: Writer) -> None:
    folder = write_pieces()
    _without_normalizer(folder)
    with pytest.raises(UnsupportedError, match="not the sentencepiece model of a ChatGLM, or inc"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": True},
        {"byte_fallback": False},
        {"treat_whitespace_as_suffix": True},
    ],
)
def test_models_that_change_text_otherwise_are_refused(
    write_pieces: Writer, changes: dict[str, Any]
) -> None:
    folder = write_pieces()
    changes = {"vocab_size": 70} | changes if "byte_fallback" in changes else changes
    (folder / "tokenizer.model").write_bytes(train_sentencepiece(**changes))
    with pytest.raises(UnsupportedError, match="not the sentencepiece model of a ChatGLM"):
        load_tokenizer(folder)
