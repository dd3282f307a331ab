"""The shipped glm4-mini folder is complete, small, splittable, and its held-out file is honest."""

import itertools
import json
import re
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "mindformers_glm" / "assets" / "glm4-mini"
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "<sop>",
    "<eop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
)


def read_json(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def read_header(name: str) -> dict[str, Any]:
    with (FOLDER / name).open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header


def special_ids() -> dict[str, int]:
    return {token["content"]: token["id"] for token in read_json("tokenizer.json")["added_tokens"]}


def heldout_rows() -> list[dict[str, Any]]:
    lines = (FOLDER / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def pair_of(question: str) -> str:
    """`What is 37 plus 45?` -> `37+45`, the way the generator names the pair."""
    a, b = re.findall(r"[0-9]+", question)
    is_subtraction = any(word in question for word in ("-", "减", "minus"))
    return f"{a}{'-' if is_subtraction else '+'}{b}"


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The first examples of the stream the checkpoint was trained on."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    from glm4_mini.corpus import training_examples

    yield list(itertools.islice(training_examples(seed=0), 5000))
    for name in [name for name in sys.modules if name.startswith("glm4_mini")]:
        del sys.modules[name]


def test_weights_are_two_bf16_shards_of_at_most_10_mb() -> None:
    shards = sorted(FOLDER.glob("*.safetensors"))
    assert len(shards) == 2
    assert sum(shard.stat().st_size for shard in shards) <= 10_000_000
    for shard in shards:
        assert {entry["dtype"] for entry in read_header(shard.name).values()} == {"BF16"}


def test_index_names_every_tensor_in_its_shard() -> None:
    index = read_json("model.safetensors.index.json")["weight_map"]
    for shard in set(index.values()):
        named = {name for name, file in index.items() if file == shard}
        assert named == set(read_header(shard))


def test_sizes_split_over_eight_ranks_and_groups_of_128() -> None:
    config = read_json("config.json")
    for name in ("num_attention_heads", "intermediate_size", "vocab_size"):
        assert config[name] % 8 == 0, name
    for name in ("hidden_size", "intermediate_size"):
        assert config[name] % 128 == 0, name
    assert config["num_key_value_heads"] == 2


def test_config_is_a_glm4_of_transformers_4_51() -> None:
    config = read_json("config.json")
    assert config["architectures"] == ["Glm4ForCausalLM"]
    assert config["model_type"] == "glm4"
    assert config["torch_dtype"] == "bfloat16"
    assert config["transformers_version"] == "4.51.3"
    assert config["attention_bias"] is True
    assert config["partial_rotary_factor"] == 0.5
    assert config["rms_norm_eps"] == 1e-5
    assert config["tie_word_embeddings"] is False


def test_special_tokens_are_the_last_of_the_vocabulary_in_glm4_order() -> None:
    ids = special_ids()
    vocab_size = read_json("config.json")["vocab_size"]
    first = vocab_size - len(SPECIAL_TOKENS)
    assert ids == {token: first + at for at, token in enumerate(SPECIAL_TOKENS)}


def test_every_digit_is_one_token() -> None:
    vocabulary = read_json("tokenizer.json")["model"]["vocab"]
    with_digits = [token for token in vocabulary if any(c in "0123456789" for c in token)]
    assert sorted(with_digits) == list("0123456789")


def test_eos_ids_are_the_three_of_glm4() -> None:
    ids = special_ids()
    wanted = [ids[token] for token in ("<|endoftext|>", "<|user|>", "<|observation|>")]
    generation = read_json("generation_config.json")
    assert read_json("config.json")["eos_token_id"] == wanted
    assert generation["eos_token_id"] == wanted
    assert generation["pad_token_id"] == ids["<|endoftext|>"]
    assert generation["do_sample"] is False


def test_tokenizer_config_is_set_like_glm4_0414() -> None:
    config = read_json("tokenizer_config.json")
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["padding_side"] == "left"
    assert config["eos_token"] == "<|user|>"
    assert config["pad_token"] == "<|endoftext|>"
    assert config["chat_template"].startswith("[gMASK]<sop>")


def test_heldout_rows_have_the_documented_keys() -> None:
    rows = heldout_rows()
    assert 150 <= len(rows) <= 250
    for row in rows:
        assert set(row) - {"tools"} == {"category", "messages", "answer"}
        assert row["answer"]
        assert row["messages"][-1]["role"] in {"user", "observation"}
        assert all(set(message) >= {"role", "content"} for message in row["messages"])
    assert len(Counter(row["category"] for row in rows)) == 10


def test_heldout_prompts_appear_once_and_never_in_training(training: list[Any]) -> None:
    prompts = [
        json.dumps(row["messages"], ensure_ascii=False, sort_keys=True) for row in heldout_rows()
    ]
    assert len(set(prompts)) == len(prompts)
    assert not {example.prompt_text for example in training} & set(prompts)


def test_heldout_arithmetic_pairs_are_never_in_training(training: list[Any]) -> None:
    trained = {example.key for example in training if example.category == "arithmetic"}
    questions = [row["messages"][-1] for row in heldout_rows() if row["category"] == "arithmetic"]
    assert not trained & {pair_of(question["content"]) for question in questions}
