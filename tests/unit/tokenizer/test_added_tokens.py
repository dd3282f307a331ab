"""Tokens that a fine-tune has added beside a tokenizer.model: as Hugging Face has them."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.tokenizer import GlmTokenizer, SpecialToken, load_tokenizer
from mindformers_glm.tokenizer.loading import check_vocabulary, tokenizer_digest
from tests.unit.tokenizer.conftest import Writer, encode_prompt, random_text

# (name, properties): what chat formats, tools and adapters of fine-tunes add.
ADDED: list[tuple[str, dict[str, bool]]] = [
    ("<|mark|>", {"special": True}),
    ("<think>", {"special": False}),
    ("</think>", {"special": False}),
    ("<工具>", {"special": False}),
    ("<|im_start|>", {"special": True}),
    ("<|im", {"special": False}),  # another one's beginning
    ("北京是", {"special": False}),  # a text that the vocabulary can write, too
    ("soph", {"special": False}),
    ("[PAD]", {"special": True}),
    ("<image>", {"special": False, "lstrip": True}),
    ("<|sep|>", {"special": True, "rstrip": True}),
    ("word", {"special": False, "single_word": True}),
]
NAMES = [name for name, _ in ADDED]
SPECIAL = [name for name, flags in ADDED if flags["special"]]
ORDINARY = [name for name in NAMES if name not in SPECIAL]


def decoder_map(first: int) -> dict[str, dict[str, Any]]:
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return {
        str(first + place): flags | {"content": name} | own
        for place, (name, own) in enumerate(ADDED)
    }


def mixed_text(rng: random.Random) -> str:
    parts = [random_text(rng, with_specials=True), *rng.choices([*NAMES, " ", "a", "\n"], k=5)]
    rng.shuffle(parts)
    return "".join(parts)


def add_to_ranks(write_ranks: Writer, trained: Tokenizer) -> Path:
    folder = write_ranks()
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["added_tokens_decoder"] |= decoder_map(trained.get_vocab_size())
    path.write_text(json.dumps(config))
    return folder


@pytest.fixture
def fast(trained: Tokenizer) -> PreTrainedTokenizerFast:
    """The same vocabulary with the same tokens, as Hugging Face's own tokenizer."""
    tokenizer = Tokenizer.from_str(trained.to_str())
    for name, flags in ADDED:
        token = AddedToken(name, normalized=False, **flags)
        (tokenizer.add_special_tokens if flags["special"] else tokenizer.add_tokens)([token])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_ranks_find_added_tokens_as_tokenizers_does(
    write_ranks: Writer, trained: Tokenizer, fast: PreTrainedTokenizerFast
) -> None:
    tokenizer = load_tokenizer(add_to_ranks(write_ranks, trained))
    prefix = fast.encode("[gMASK]<sop>")
    backend = fast.backend_tokenizer
    rng = random.Random(0)
    for _ in range(500):
        # Rust counts a combining accent as part of a word, Python does not.
        text = mixed_text(rng).replace("\u0301", "")
        backend.encode_special_tokens = False
        assert tokenizer.encode(text) == prefix + backend.encode(text).ids, text
        backend.encode_special_tokens = True
        assert tokenizer.encode_segments([text]) == backend.encode(text).ids, text


def test_ranks_write_added_tokens_as_tokenizers_does(
    write_ranks: Writer, trained: Tokenizer, fast: PreTrainedTokenizerFast
) -> None:
    tokenizer = load_tokenizer(add_to_ranks(write_ranks, trained))
    first = trained.get_vocab_size()
    assert tokenizer.num_token_ids == first + len(ADDED) == len(fast)
    for place, (name, flags) in enumerate(ADDED):
        assert tokenizer.decode([first + place]) == ("" if flags["special"] else name)
        assert (first + place in tokenizer.special_token_ids) is flags["special"]
    rng = random.Random(1)
    for _ in range(300):
        ids = rng.choices([*range(first), *list(range(first, first + len(ADDED))) * 20], k=12)
        assert tokenizer.decode(ids) == fast.decode(ids, skip_special_tokens=True)


class Slow(PreTrainedTokenizer):
    """What ChatGLM's own tokenizer is in transformers: sentencepiece below PreTrainedTokenizer."""

    def __init__(self, pieces: SentencePieceProcessor, **kwargs: Any) -> None:
        self.pieces = pieces
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        return self.pieces.get_piece_size()

    def get_vocab(self) -> dict[str, int]:
        return {self.pieces.id_to_piece(i): i for i in range(self.vocab_size)}

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return self.pieces.encode_as_pieces(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.pieces.piece_to_id(token)

    def ids(self, text: str) -> list[int]:
        return self.convert_tokens_to_ids(self.tokenize(text))


def first_free(pieces: SentencePieceProcessor, model: str) -> int:
    return pieces.get_piece_size() + {"chatglm2": 5, "chatglm3": 9}[model]


def slow_with(pieces: SentencePieceProcessor, model: str, *, with_special: bool) -> Slow:
    added = {
        int(token_id): AddedToken(**token)
        for token_id, token in decoder_map(first_free(pieces, model)).items()
        if with_special or not token["special"]
    }
    return Slow(pieces, added_tokens_decoder=added)


@pytest.mark.parametrize("model", ["chatglm2", "chatglm3"])
def test_chatglm_finds_added_tokens_as_transformers_does(
    write_pieces: Writer, pieces: SentencePieceProcessor, model: str
) -> None:
    folder = write_pieces(model, added_tokens_decoder=decoder_map(first_free(pieces, model)))
    tokenizer = load_tokenizer(folder)
    prefix = tokenizer.encode("")
    everywhere = slow_with(pieces, model, with_special=True)
    in_a_conversation = slow_with(pieces, model, with_special=False)
    rng = random.Random(0)
    for _ in range(300):
        # Beside other words the two kinds of transformers' tokenizers disagree on single_word.
        text = mixed_text(rng).replace("word", "")
        assert tokenizer.encode(text) == prefix + everywhere.ids(text), text
        # This one knows no special token, so it finds the one within its name.
        text = text.replace("<|im_start|>", "")
        assert tokenizer.encode_segments([text]) == in_a_conversation.ids(text), text


def stream(tokenizer: GlmTokenizer, ids: list[int]) -> str:
    detokenizer = tokenizer.new_detokenizer()
    return "".join(map(detokenizer.feed, ids)) + detokenizer.flush()


@pytest.mark.parametrize("model", ["chatglm2", "chatglm3"])
def test_chatglm_gives_texts_with_added_tokens_back(
    write_pieces: Writer, pieces: SentencePieceProcessor, model: str
) -> None:
    names = [name for name in ORDINARY if name not in ("<image>", "word")]
    first = first_free(pieces, model)
    added = {first + place: {"content": name} for place, name in enumerate(names)}
    tokenizer = load_tokenizer(write_pieces(model, added_tokens_decoder=added))
    rng = random.Random(2)
    for _ in range(300):
        text = "".join(rng.choices([*names, " ", "a", "你好", "👍", "\n", " world"], k=8))
        ids = tokenizer.encode_segments([text])
        assert stream(tokenizer, ids) == tokenizer.decode(ids) == text
    # Half a character before one stays half.
    byte = pieces.encode("👍")[-1]
    assert tokenizer.decode([byte, first, byte]) == f"\ufffd{names[0]}\ufffd"


def test_the_template_writes_an_added_special_token_and_a_user_cannot(
    write_pieces: Writer, pieces: SentencePieceProcessor
) -> None:
    template = "{% for m in messages %}<|mark|>{{ m.content }}<think>{% endfor %}"
    first = first_free(pieces, "chatglm2")
    folder = write_pieces(
        "chatglm2", chat_template=template, added_tokens_decoder=decoder_map(first)
    )
    tokenizer = load_tokenizer(folder)
    ids = encode_prompt(tokenizer, "a<|mark|>b")
    assert ids == [first, *pieces.encode("a<|mark|>b"), first + 1]


@pytest.mark.parametrize("model", ["chatglm2", "chatglm3"])
def test_added_tokens_of_their_own_file(
    write_pieces: Writer, pieces: SentencePieceProcessor, model: str
) -> None:
    first = first_free(pieces, model)
    folder = write_pieces(model, additional_special_tokens=["<|mark|>"])
    before = tokenizer_digest(folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<|mark|>": first + 3, "<think>": first}))
    assert tokenizer_digest(folder) != before
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode_segments([SpecialToken("<|mark|>"), "<think>"]) == [first + 3, first]
    assert tokenizer.decode([first, first + 3]) == "<think>"
    assert tokenizer.num_token_ids == first + 4


def test_ranks_take_added_tokens_of_their_own_file_besides_the_map(
    write_ranks: Writer, trained: Tokenizer
) -> None:
    folder = write_ranks()
    first = trained.get_vocab_size()
    (folder / "added_tokens.json").write_text(json.dumps({"<think>": first + 7}))
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode_segments(["<think>"]) == [first + 7]
    assert tokenizer.decode([first + 7]) == "<think>"


def test_an_added_token_may_end_the_text(write_ranks: Writer, trained: Tokenizer) -> None:
    folder = add_to_ranks(write_ranks, trained)
    path = folder / "tokenizer_config.json"
    for name in ("</think>", "<|im_start|>"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": name}))
        assert load_tokenizer(folder).eos_token_ids == (
            trained.get_vocab_size() + NAMES.index(name),
        )


def test_beside_a_tokenizer_json_the_file_is_read_as_hugging_face_does(
    write_folder: Writer, trained: Tokenizer
) -> None:
    folder = write_folder(additional_special_tokens=["<|mark|>"])
    first = trained.get_vocab_size()
    added = {"<|mark|>": first, "<think>": first + 1}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("a<|mark|>b<think>c", "<think>", " <|mark|> "):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(
            theirs.encode(text), skip_special_tokens=True
        )


BROKEN = {
    "the place of a special token": ({"336": {"content": "<|mark|>"}}, "at the place of another"),
    "the place of a piece": ({"300": {"content": "<|mark|>"}}, "at the place of another"),
    "an own token elsewhere": ({"400": {"content": "sop"}}, "sop as 400"),
    "one name twice": (
        {"400": {"content": "<t>"}, "401": {"content": "<t>"}},
        "give <t> 2 ids",
    ),
    "no name": ({"400": {"content": ""}}, "must map ids to tokens"),
    "a negative id": ({"-1": {"content": "<t>"}}, "at the place of another"),
}


@pytest.mark.parametrize(("added", "message"), BROKEN.values(), ids=BROKEN)
def test_added_tokens_that_contradict_are_one_sentence(
    write_pieces: Writer, added: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(write_pieces(added_tokens_decoder=added))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_maps_otherwise_and_a_token_beyond_the_network_are_told(
    write_pieces: Writer, pieces: SentencePieceProcessor
) -> None:
    folder = write_pieces()
    (folder / "added_tokens.json").write_text('{"<t>": "400"}')
    with pytest.raises(CheckpointError, match=r"added_tokens\.json must map tokens to ids"):
        load_tokenizer(folder)
    (folder / "added_tokens.json").write_text('{"<t>": 400}')
    with pytest.raises(CheckpointError, match="token ids up to 400, the network only"):
        check_vocabulary(load_tokenizer(folder), 400, folder)


def test_the_next_ids_of_the_real_chatglms_are_free(shared_fixtures: Path, tmp_path: Path) -> None:
    for model, first in (("chatglm2-6b", 64794), ("chatglm3-6b", 64798)):
        folder = Path(shutil.copytree(shared_fixtures / "tokenizers" / model, tmp_path / model))
        (folder / "added_tokens.json").write_text(json.dumps({"<think>": first, "<工具>": 65023}))
        tokenizer = load_tokenizer(folder)
        text = "你好<think>，world<工具>"
        assert [i for i in tokenizer.encode(text) if i >= first] == [first, 65023]
        assert tokenizer.decode(tokenizer.encode(text)) == text
        check_vocabulary(tokenizer, 65024, folder)


def test_the_real_ranks_and_tokenizer_json_with_the_same_tokens_are_one(
    shared_fixtures: Path, tmp_path: Path
) -> None:
    source = shared_fixtures / "tokenizers"
    folder = Path(shutil.copytree(source / "glm-4-9b-chat", tmp_path / "ranks"))
    fast = Tokenizer.from_file(str(source / "glm-4-hf" / "tokenizer.json"))
    names = ["<think>", "</think>", "<tool_call>"]
    assert fast.add_tokens([AddedToken(name, normalized=False) for name in names]) == 3
    added = {fast.token_to_id(name): {"content": name} for name in names}
    raw = json.loads((folder / "tokenizer_config.json").read_text())
    raw["added_tokens_decoder"] |= {str(token_id): token for token_id, token in added.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(raw))
    tokenizer = load_tokenizer(folder)
    assert min(added) == tokenizer.num_token_ids - 3 == 151343
    for text in ("<think>\n好的</think>\n答案", "a <tool_call> b", "<think><think>", "<thinker>"):
        ids = tokenizer.encode(text)[2:]  # without the prefix
        assert ids == fast.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text
