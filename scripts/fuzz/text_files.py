"""Damaged YAML, tokenizer files and chat templates, and what reads them."""

import argparse
import base64
import io
import json
import random
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from mutations import damage_bytes, damage_json
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from mindformers_glm.config.run_config import load_run_config
from mindformers_glm.config.settings_reader import read_yaml_settings
from mindformers_glm.tokenizer.detokenizer import byte_level_alphabet
from mindformers_glm.tokenizer.loading import load_tokenizer

_CONFIGS = Path(__file__).resolve().parents[2] / "configs"
_SPECIAL = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>")
_TEXT = "Hello wörld 北京 <|user|>\n  1234\U0001f980"
_BOMB = "x0: &x0 [1, 1]\n" + "".join(f"x{i}: &x{i} [*x{i - 1}, *x{i - 1}]\n" for i in range(1, 40))
_LINES = [
    *("a: &a [*a]", "<<: *a", "seed: 0x" + "f" * 400, "seed: 1:59:59", "seed: .inf", "? [a]\n: 1"),
    *("seed: 2020-13-45", "--- a", "...", "%YAML 1.1", "a: !!binary x", "- a", "trainer:", "\t"),
    *("a: !!python/object/apply:os.system [x]", "a: |\n  b", "a: >\n b", "seed: !!int ''", _BOMB),
    *("save_file: /dev/null", "save_file: 'a\\0b'", 'save_file: "a\\0b"', "load_checkpoint: [1]"),
]


def read_yaml(rng: random.Random, folder: Path) -> None:
    """Damage one of the shipped files: lines, values, bytes."""
    lines = rng.choice(sorted(_CONFIGS.rglob("*.yaml"))).read_text(encoding="utf-8").splitlines()
    for _ in range(rng.choice([1, 1, 2, 5])):
        place = rng.randrange(len(lines))
        kind = rng.randrange(4)
        if kind == 0:
            lines.insert(place, rng.choice(_LINES))
        elif kind == 1:
            lines[place : place + 1] = rng.sample(lines, min(len(lines), rng.randrange(3)))
        elif kind == 2:
            value = damage_json(rng.choice([1, "a", [1], {"a": 1}]), rng).decode(errors="replace")
            lines[place] = lines[place].partition(":")[0] + ": " + value[:3000]
        else:
            lines[place] = " " * rng.randrange(5) + lines[place]
        lines = lines or ["a: 1"]
    content = "\n".join(lines).encode("utf-8", "replace")
    path = folder / "run.yaml"
    path.write_bytes(damage_bytes(content, rng) if rng.random() < 0.4 else content)
    read_yaml_settings(path)
    arguments = argparse.Namespace(config=str(path), options=[], given=[])
    load_run_config(arguments, environ={})


@lru_cache
def _train() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+|[^\s\p{L}\p{N}]+"), "isolated")
    bytes_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=270, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([_TEXT] * 9, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in _SPECIAL])
    return tokenizer


@lru_cache
def _train_pieces() -> bytes:
    from sentencepiece import SentencePieceTrainer

    file = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([_TEXT, "a b c", "\n"] * 50),
        model_writer=file,
        minloglevel=2,
        model_type="bpe",
        vocab_size=300,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        hard_vocab_limit=False,
    )
    return file.getvalue()


def prepare_tokenizers() -> None:
    """Make what damage is done to, and import what reads it, before memory is limited."""
    from transformers import PreTrainedTokenizerFast  # noqa: F401

    _train_pieces()
    _train()


def read_tokenizer(rng: random.Random, folder: Path) -> None:
    """Damage the vocabulary or the files beside it, of each of the three kinds."""
    kind = rng.choice(["fast", "ranks", "pieces"])
    added = {
        str(_train().token_to_id(name)): {"content": name, "special": True} for name in _SPECIAL
    }
    config: dict[str, Any] = {"eos_token": "<|endoftext|>", "added_tokens_decoder": added}
    if kind == "fast":
        config |= {"additional_special_tokens": list(_SPECIAL), "chat_template": _TEMPLATES[0]}
        vocabulary = _train().to_str().encode()
    elif kind == "ranks":
        byte_of = byte_level_alphabet()
        tokens = sorted((rank, token) for token, rank in _train().get_vocab(False).items())
        vocabulary = b"".join(
            base64.b64encode(bytes(byte_of[char] for char in token)) + b" %d\n" % rank
            for rank, token in tokens
        )
    else:
        config = {"name_or_path": "THUDM/chatglm3-6b"}
        vocabulary = _train_pieces()
    if is_vocabulary := rng.random() < 0.6:
        is_tree = kind == "fast" and rng.random() < 0.7
        vocabulary = (
            damage_json(json.loads(vocabulary), rng) if is_tree else damage_bytes(vocabulary, rng)
        )
    name = "tokenizer.json" if kind == "fast" else "tokenizer.model"
    (folder / name).write_bytes(vocabulary)
    content = json.dumps(config).encode() if is_vocabulary else damage_json(config, rng)
    (folder / "tokenizer_config.json").write_bytes(content)
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode(_TEXT)
    tokenizer.decode(ids)
    tokenizer.decode([*range(50), 10**6, *range(250, 290)])
    if tokenizer.has_chat_template:
        tokenizer.encode_chat([{"role": "user", "content": _TEXT}])


_TEMPLATES = [
    "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "[gMASK]<sop>{%- if tools -%}<|system|>\n{% for tool in tools %}{{ tool | tojson(indent=4) }}"
    "{% endfor %}{%- endif -%}{% set ns = namespace(last=-1) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{%- for m in messages if m.role != 'x' %}{%- set c = m['content'].split('</think>')[-1] %}"
    "<|{{ m['role'] }}|>{{ '\\n' + c.strip() }}{% if loop.index0 > ns.last %}!{% endif %}"
    "{%- if m.tool_calls %}{% for call in m.tool_calls %}{{ call.function.arguments | tojson }}"
    "{% endfor %}{% endif %}{%- endfor %}<|assistant|>",
    "{% macro show(x) %}{% if x is string %}{{ x }}{% else %}{% for i in x %}{{ i.text }}"
    "{% endfor %}{% endif %}{% endmacro %}{% for m in messages %}{{ show(m.content) }}{% endfor %}",
]
_NAMES = ["messages", "tools", "m", "ns.x", "ns", "loop", "range", "x", "bos", "none", "self", "f"]
_LITERALS = [
    "'a'",
    "'%s'",
    "'{}'",
    "'ab\\n' * 99",
    "1",
    "0",
    "-1",
    "3.5",
    "99999",
    "10 ** 9",
    "2 ** 63",
]
_METHODS = (
    *("upper()", "split()", "split('a')", "strip('a')", "join(['a', 'b'])", "replace('a', 'bb')"),
    *(
        "items()",
        "get('role')",
        "ljust(99)",
        "ljust(10 ** 9)",
        "format(1)",
        "format(a=1)",
        "encode()",
    ),
    *("center(5000)", "expandtabs(9)", "startswith('a')", "rfind('a')", "splitlines()", "keys()"),
    *(
        "append(1)",
        "__class__",
        "copy()",
        "count('a')",
        "index(1)",
        "translate({97: 'b'})",
        "title()",
    ),
)
_FILTERS = (
    *(
        "length",
        "trim",
        "upper",
        "list",
        "tojson",
        "tojson(indent=2)",
        "join(',')",
        "first",
        "last",
    ),
    *(
        "string",
        "int",
        "default('a')",
        "sort",
        "unique",
        "reverse",
        "map('upper')",
        "batch(3, 'x')",
    ),
    *("map(attribute='role')", "selectattr('role')", "select('string')", "indent(9)", "center(99)"),
    *("replace('a', 'bbb')", "format(1)", "sum", "groupby('role')", "slice(3)", "round(2)", "abs"),
    *(
        "dictsort",
        "items",
        "escape",
        "safe",
        "truncate(9)",
        "wordcount",
        "title",
        "max",
        "min",
        "attr('x')",
    ),
)
_OPERATORS = (
    "+",
    "-",
    "*",
    "**",
    "//",
    "/",
    "%",
    "~",
    "==",
    "<",
    "in",
    "not in",
    "and",
    "or",
    "!=",
)

_SHAPES = (
    "text\n",
    "{{ VALUE }}",
    "{% set ns.x = VALUE %}",
    "{% set m = VALUE %}BODY",
    "{% for m in VALUE %}BODY{% endfor %}",
    "{% for m in range(99999) %}BODY{% endfor %}",
    "{% if VALUE %}BODY{% else %}-{% endif %}",
    "{% macro f(x) %}BODY{% endmacro %}{{ f(VALUE) }}",
    "{% set ns.x %}BODY{% endset %}",
)


def _expression(rng: random.Random, depth: int) -> str:
    kind = rng.randrange(9 if depth else 2)
    below = depth - 1
    if kind == 0:
        return rng.choice(_NAMES)
    if kind == 1:
        return rng.choice(_LITERALS)
    if kind in (2, 3):
        left, right = _expression(rng, below), _expression(rng, below)
        return f"({left} {rng.choice(_OPERATORS)} {right})"
    if kind == 4:
        return f"{_expression(rng, below)}.{rng.choice(_METHODS)}"
    if kind == 5:
        return f"({_expression(rng, below)} | {rng.choice(_FILTERS)})"
    if kind == 6:
        items = ", ".join(_expression(rng, below) for _ in range(rng.randrange(4)))
        return rng.choice(["[%s]", "(%s,)", "range(%s)", "f(%s)", "dict(a=[%s])"]) % items
    if kind == 7:
        place = rng.choice(["0", "-1", "1:", "::-1", "'role'", "::2", _expression(rng, below)])
        return f"{_expression(rng, below)}[{place}]"
    return (
        f"({_expression(rng, below)} if {_expression(rng, below)} else {_expression(rng, below)})"
    )


def _statements(rng: random.Random, depth: int) -> str:
    parts = []
    for _ in range(rng.randrange(1, 4)):
        value = _expression(rng, 3)
        body = _statements(rng, depth - 1) if depth and rng.random() < 0.6 else ""
        shape = rng.choice(_SHAPES[3:] if body else _SHAPES[:3])
        parts.append(shape.replace("VALUE", value).replace("BODY", body))
    return "".join(parts)


def read_template(rng: random.Random, folder: Path) -> None:
    """Damage a template, or write one at random, and let it write a conversation."""
    template = rng.choice(_TEMPLATES)
    if rng.random() < 0.5:
        template = "{% set ns = namespace(x=['a']) %}" + _statements(rng, 3)
    elif rng.random() < 0.5:
        words = re.findall(r"\w+|\s+|.", template)
        for _ in range(rng.choice([1, 2, 4])):
            place = rng.randrange(len(words))
            words[place : place + rng.randrange(3)] = [
                rng.choice([*words, _expression(rng, 2)]) for _ in range(rng.randrange(3))
            ]
            words = words or ["a"]
        template = "".join(words)
    content = template.encode()
    if rng.random() < 0.3:
        content = damage_bytes(content, rng)
    (folder / "tokenizer.model").write_bytes(_train_pieces())
    (folder / "tokenizer_config.json").write_text('{"name_or_path": "THUDM/chatglm3-6b"}')
    (folder / "chat_template.jinja").write_bytes(content)
    tool = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": _TEXT},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "r"},
    ]
    tokenizer = load_tokenizer(folder)
    tokenizer.encode_chat(messages[: rng.randrange(1, 5)], [tool] if rng.random() < 0.5 else None)


READERS = {
    "yaml": (50_000, read_yaml),
    "tokenizer": (50_000, read_tokenizer),
    "template": (30_000, read_template),
}
