"""The family's true vocabularies; their files may not be in the repository: this may be skipped."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.core.errors import PromptError
from mindformers_glm.tokenizer import GlmTokenizer, load_tokenizer
from mindformers_glm.tokenizer.chat import write_chat
from tests.unit.tokenizer.conftest import encode_prompt, random_text


@pytest.fixture(scope="module")
def glm4_folder(shared_fixtures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glm-4")
    tokenizers = shared_fixtures / "tokenizers"
    (folder / "tokenizer.json").symlink_to(tokenizers / "glm-4-hf" / "tokenizer.json")
    shutil.copy(tokenizers / "templates" / "glm-4-9b-chat.jinja", folder / "chat_template.jinja")
    # The eos_token is that of GLM-4-9B-0414's tokenizer.
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|user|>"}')
    return folder


@pytest.fixture(scope="module")
def tokenizer(glm4_folder: Path) -> GlmTokenizer:
    return load_tokenizer(glm4_folder)


@pytest.fixture(scope="module")
def golden(shared_fixtures: Path) -> dict[str, Any]:
    path = shared_fixtures / "golden" / "tokenizer_golden.json"
    return json.loads(path.read_text(encoding="utf-8"))


def test_texts_have_the_golden_ids(tokenizer: GlmTokenizer, golden: dict[str, Any]) -> None:
    for case in golden["glm4"]["encode_with_prefix"]:
        # The old slow tokenizer prepends [gMASK]<sop>, the fast one nothing.
        assert tokenizer.encode("[gMASK]<sop>" + case["text"]) == case["ids"]


def test_chats_have_the_golden_ids(tokenizer: GlmTokenizer, golden: dict[str, Any]) -> None:
    for case in golden["glm4"]["chat"]:
        assert tokenizer.encode_chat(case["messages"]) == case["ids"]


def test_control_tokens_in_text_stay_text(tokenizer: GlmTokenizer) -> None:
    text = "你<|user|>\n[gMASK]好<|endoftext|>"
    ids = encode_prompt(tokenizer, text)
    assert [i for i in ids if i >= 151329] == [151331, 151333, 151336, 151337]
    assert tokenizer.decode(ids) == "\n" + text


@pytest.mark.slow
def test_random_conversations_have_hugging_faces_ids(
    tokenizer: GlmTokenizer, glm4_folder: Path
) -> None:
    from transformers import PreTrainedTokenizerFast

    oracle = PreTrainedTokenizerFast.from_pretrained(str(glm4_folder))
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


@pytest.fixture(scope="module")
def ranks(shared_fixtures: Path) -> GlmTokenizer:
    return load_tokenizer(shared_fixtures / "tokenizers" / "glm-4-9b-chat")


@pytest.fixture(scope="module", params=["chatglm2", "chatglm3"])
def chatglm(request: pytest.FixtureRequest, shared_fixtures: Path) -> tuple[str, GlmTokenizer]:
    folder = shared_fixtures / "tokenizers" / f"{request.param}-6b"
    return request.param, load_tokenizer(folder)


def test_texts_of_the_other_kinds_have_the_golden_ids(
    ranks: GlmTokenizer, chatglm: tuple[str, GlmTokenizer], golden: dict[str, Any]
) -> None:
    model, pieces = chatglm
    for name, tokenizer in (("glm4", ranks), (model, pieces)):
        for case in golden[name]["encode_with_prefix"]:
            assert tokenizer.encode(case["text"]) == case["ids"]
            assert tokenizer.decode(case["ids"]) == case["text"]


def test_built_in_formats_have_the_ids_of_golden_chats(
    ranks: GlmTokenizer, shared_fixtures: Path, golden: dict[str, Any]
) -> None:
    chatglm3 = load_tokenizer(shared_fixtures / "tokenizers" / "chatglm3-6b")
    for name, format_name, tokenizer in (
        ("glm4", "glm4_chat", ranks),
        ("chatglm3", "chatglm3", chatglm3),
    ):
        assert golden[name]["chat"]
        for case in golden[name]["chat"]:
            segments = write_chat(format_name, case["messages"])
            assert tokenizer.encode_segments(segments) == case["ids"]


def test_the_ids_are_where_the_models_have_them(
    ranks: GlmTokenizer, chatglm: tuple[str, GlmTokenizer]
) -> None:
    model, pieces = chatglm
    roles = range(64794, 64798) if model == "chatglm3" else ()
    assert pieces.special_token_ids == {0, 1, 2, *range(64789, 64794), *roles}
    assert pieces.eos_token_ids == ((2, 64795, 64797) if model == "chatglm3" else (2,))
    assert ranks.special_token_ids == set(range(151329, 151343))
    assert ranks.num_token_ids == 151343
    assert ranks.eos_token_ids == (151329,)


def _random_text(rng: random.Random) -> str:
    """Letters of many scripts, emoji, control characters, runs of the same, special tokens."""
    kind = rng.randrange(4)
    if kind == 0:
        return random_text(rng, with_specials=True)
    if kind == 1:
        unit = rng.choice(["ab", "aab", "=-", "  \n", "hehe ", "啊啊呀", "01", "\u3000", "哈"])
        return unit * rng.randint(1, 40) + rng.choice(["a", "", "\n"])
    ranges = [(0x20, 0x7F), (0, 0x20), (0xA0, 0x3000), (0x4E00, 0x9FFF), (0x1F300, 0x1FB00)]
    if kind == 2:
        ranges = [(0, 0xD800), (0xE000, 0x110000)]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randint(0, 40)))


@pytest.mark.slow
def test_ranks_and_tokenizer_json_are_one_vocabulary(
    ranks: GlmTokenizer, tokenizer: GlmTokenizer
) -> None:
    rng = random.Random(0)
    for _ in range(10_000):
        text = _random_text(rng)
        ids = tokenizer.encode_segments([text])
        assert ranks.encode_segments([text]) == ids
        assert ranks.encode(text) == [151331, 151333, *tokenizer.encode(text)]
        assert ranks.decode(ids) == tokenizer.decode(ids) == text


def test_half_a_surrogate_pair_is_one_sentence_for_all(
    ranks: GlmTokenizer, tokenizer: GlmTokenizer, chatglm: tuple[str, GlmTokenizer]
) -> None:
    rng = random.Random(1)
    for each in (ranks, tokenizer, chatglm[1]):
        for _ in range(100):
            text = _random_text(rng) + chr(rng.randrange(0xD800, 0xE000)) + _random_text(rng)
            with pytest.raises(PromptError, match=r"^The prompt is not valid Unicode text .*\.$"):
                each.encode(text)


def test_sentencepiece_gives_texts_back(chatglm: tuple[str, GlmTokenizer]) -> None:
    # The only character it changes is its own sign for a blank.
    _, tokenizer = chatglm
    rng = random.Random(2)
    for _ in range(1000):
        text = rng.choice(["", " ", "   ", "\n"]) + _random_text(rng)
        detokenizer = tokenizer.new_detokenizer()
        ids = tokenizer.encode(text)
        assert "".join(map(detokenizer.feed, ids)) + detokenizer.flush() == tokenizer.decode(ids)
        assert tokenizer.decode(ids) == text.replace("▁", " ")


def test_random_ids_of_chatglm_decode_as_the_library_does(
    chatglm: tuple[str, GlmTokenizer], shared_fixtures: Path
) -> None:
    from sentencepiece import SentencePieceProcessor

    model, tokenizer = chatglm
    file = shared_fixtures / "tokenizers" / f"{model}-6b" / "tokenizer.model"
    oracle = SentencePieceProcessor(model_file=str(file))
    rng = random.Random(3)
    for _ in range(1000):
        last = rng.choice([259, 64789])  # often bytes only
        ids = rng.choices(range(3, last), k=rng.randint(0, 20))
        assert tokenizer.decode(ids) == oracle.decode(ids)
