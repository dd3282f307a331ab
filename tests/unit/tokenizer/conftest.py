"""Small tokenizers of the family's three kinds, trained in a second."""

import base64
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mindformers_glm.engine.reply_reader import ReplyParsers
from mindformers_glm.engine.request_frontend import RequestFrontend
from mindformers_glm.tokenizer import GlmTokenizer
from mindformers_glm.tokenizer.detokenizer import byte_level_alphabet

SPECIAL_TOKENS = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"]
# Like GLM-4-0414's: content stands between a newline and the next role.
CHAT_TEMPLATE = """[gMASK]<sop>
{%- if tools %}<|system|>
# 可用工具{% for tool in tools %}

## {{ tool.function.name }}

{{ tool.function | tojson(indent=4) }}{% endfor %}{% endif %}
{%- for message in messages %}<|{{ message.role }}|>{{ message.metadata }}
{% if message.role == 'assistant' %}{{ message.content.split('</think>')[-1].strip() }}
{%- else %}{{ message.content }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
# The regular expression of the glm-4-9b-chat tokenizer.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Pieces that meet badly: newlines and blanks at borders, halves of special tokens, emoji.
PIECES = [
    *SPECIAL_TOKENS,
    *["\n", "\n\n", " ", "   ", "\t", "\r\n", "a", "Hello", " world", "你好", "北京是中国的首都"],
    *[
        "👍",
        "👩‍👩‍👧",
        "é",
        "e\u0301",
        "123",
        "1",
        "!",
        "?!\n",
        "<|",
        "|>",
        "user",
        "[gMASK",
        "]",
        "'s",
    ],
    *["</think>", "{", '"x": 1', "<s", "op>", "\u200b", "\ue000", "\0"],
]


def random_text(rng: random.Random, *, with_specials: bool) -> str:
    """Return up to twelve pieces in a row."""
    pieces = PIECES if with_specials else PIECES[len(SPECIAL_TOKENS) :]
    text = "".join(rng.choices(pieces, k=rng.randint(0, 12)))
    if not with_specials and any(token in text for token in SPECIAL_TOKENS):
        return random_text(rng, with_specials=False)  # halves have met
    return text


@pytest.fixture(scope="session")
def trained() -> Tokenizer:
    rng = random.Random(0)
    texts = [random_text(rng, with_specials=True) for _ in range(2000)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS]
    )
    return tokenizer


Writer = Callable[..., Path]


@pytest.fixture
def write_folder(trained: Tokenizer, tmp_path: Path) -> Writer:
    """Write tokenizer.json and a tokenizer_config.json with the entries given."""

    def write(chat_template: str | None = CHAT_TEMPLATE, **config: Any) -> Path:
        trained.save(str(tmp_path / "tokenizer.json"))
        if chat_template is not None:
            (tmp_path / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|user|>"} | config
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def write_ranks(trained: Tokenizer, tmp_path: Path) -> Writer:
    """Write the trained vocabulary as glm-4-9b-chat's files: base64 ranks and special tokens."""

    def write(**config: Any) -> Path:
        folder = tmp_path / "ranks"
        folder.mkdir(exist_ok=True)
        byte_of = byte_level_alphabet()
        ranks = sorted((rank, token) for token, rank in trained.get_vocab(False).items())
        lines = [
            base64.b64encode(bytes(byte_of[char] for char in token)) + b" %d\n" % rank
            for rank, token in ranks
        ]
        (folder / "tokenizer.model").write_bytes(b"".join(lines))
        added = {
            str(trained.token_to_id(name)): {"content": name, "special": True}
            for name in SPECIAL_TOKENS
        }
        config = {"eos_token": "<|endoftext|>", "added_tokens_decoder": added} | config
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder

    return write


def train_sentencepiece(**changes: Any) -> bytes:
    """Train with the settings that ChatGLM's model has inside."""
    rng = random.Random(0)
    words = [
        "\n",
        " ",
        "   ",
        "\t",
        "Hello",
        " world",
        "你好",
        "北京是中国的首都",
        "123",
        "!",
        "sop",
    ]
    texts = ["".join(rng.choices(words, k=12)) for _ in range(500)]
    file = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": 330,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
    }
    SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=file, minloglevel=2, **(settings | changes)
    )
    return file.getvalue()


@pytest.fixture(scope="session")
def pieces() -> SentencePieceProcessor:
    return SentencePieceProcessor(model_proto=train_sentencepiece())


@pytest.fixture
def write_pieces(pieces: SentencePieceProcessor, tmp_path: Path) -> Writer:
    """Write the trained sentencepiece model as ChatGLM2's or ChatGLM3's files."""

    def write(model: str = "chatglm3", **config: Any) -> Path:
        folder = tmp_path / "pieces"
        folder.mkdir(exist_ok=True)
        (folder / "tokenizer.model").write_bytes(pieces.serialized_model_proto())
        config = {"name_or_path": f"THUDM/{model}-6b"} | config
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder

    return write


def encode_prompt(
    tokenizer: GlmTokenizer, text: str, apply_chat_template: bool | Literal["auto"] = "auto"
) -> list[int]:
    """The token ids of a text that is asked of a model."""
    parsers = ReplyParsers("none", "none")
    return RequestFrontend(tokenizer, parsers, apply_chat_template).encode(text)[0]
