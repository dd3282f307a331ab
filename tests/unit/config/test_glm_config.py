"""GlmConfig: both styles of config.json are read, nothing is guessed, refusals name the key."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import ConfigError, UnsupportedError

# transformers 5.23.0, Glm4Config(...).save_pretrained with a 9B's sizes
TRANSFORMERS_5 = {
    "architectures": ["Glm4ForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "bos_token_id": None,
    "dtype": "bfloat16",
    "eos_token_id": [151329, 151336, 151338],
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 13696,
    "max_position_embeddings": 32768,
    "model_type": "glm4",
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "pad_token_id": 151329,
    "rms_norm_eps": 1e-05,
    "rope_parameters": {
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000.0,
        "rope_type": "default",
    },
    "tie_word_embeddings": False,
    "transformers_version": "5.23.0",
    "use_cache": True,
    "vocab_size": 151552,
}
# The same model as transformers 4 writes it.
TRANSFORMERS_4: dict[str, Any] = {
    key: value
    for key, value in TRANSFORMERS_5.items()
    if key not in ("rope_parameters", "dtype", "bos_token_id")
} | {"rope_theta": 10000.0, "partial_rotary_factor": 0.5, "torch_dtype": "bfloat16"}

ARCHITECTURE_KEYS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_theta",
    "partial_rotary_factor",
    "attention_bias",
    "hidden_act",
)


def read(**changes: Any) -> GlmConfig:
    return GlmConfig.from_dict(TRANSFORMERS_4 | changes, "config.json")


def test_transformers_4_and_5_styles_give_the_same_config():
    config = GlmConfig.from_dict(TRANSFORMERS_5, "new")
    assert config == GlmConfig.from_dict(TRANSFORMERS_4, "old")
    assert (config.rope_theta, config.rotary_dim, config.torch_dtype) == (10000.0, 64, "bfloat16")
    assert config.eos_token_ids == (151329, 151336, 151338)
    assert config.bos_token_id is None


def test_glm_has_the_keys_of_glm4_and_no_sandwich_norms():
    config = read(model_type="glm", architectures=["GlmForCausalLM"])
    assert (config.model_type, config.architecture) == ("glm", "GlmForCausalLM")
    assert not config.has_sandwich_norms
    assert read().has_sandwich_norms
    assert replace(config, model_type="glm4", architecture="Glm4ForCausalLM") == read()


@pytest.mark.parametrize("model_type", ["glm", "glm4"])
def test_what_is_written_reads_back(model_type: str):
    architecture = {"glm": "GlmForCausalLM", "glm4": "Glm4ForCausalLM"}[model_type]
    config = read(
        model_type=model_type,
        architectures=[architecture],
        eos_token_id=[7, 8],
        torch_dtype=None,
        tie_word_embeddings=True,
        float_layers_id=[0, 3],
        rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    )
    assert GlmConfig.from_dict(config.to_dict(), "again") == config


def test_float_layers_are_read_each_once_and_in_order():
    assert read(float_layers_id=[39, 0, 39]).float_layers_id == (0, 39)
    assert read().float_layers_id == ()


def test_32b_shape_is_read():
    config = read(
        hidden_size=6144,
        intermediate_size=23040,
        num_hidden_layers=61,
        num_attention_heads=48,
        attention_bias=False,
    )
    assert (config.num_attention_heads, config.num_key_value_heads) == (48, 2)
    assert config.attention_bias is False


def test_kv_bytes_per_token_are_those_of_the_9b():
    assert read().kv_bytes_per_token("bfloat16") == 40 * 1024  # 40*2*2*128*2, facts of the family
    assert read().kv_bytes_per_token("float32") == 80 * 1024


@pytest.mark.parametrize("key", ARCHITECTURE_KEYS)
def test_a_missing_key_is_named_with_its_file(tmp_path: Path, key: str):
    raw = {name: value for name, value in TRANSFORMERS_4.items() if name != key}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match=f"'{key}' is missing") as caught:
        GlmConfig.from_hf(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize("key", ["rope_theta", "partial_rotary_factor"])
def test_a_key_missing_from_rope_parameters_is_named(key: str):
    rope = {k: v for k, v in TRANSFORMERS_5["rope_parameters"].items() if k != key}
    with pytest.raises(ConfigError, match=f"'{key}' is missing"):
        GlmConfig.from_dict(TRANSFORMERS_5 | {"rope_parameters": rope}, "config.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": "4096"}, "hidden_size must be a whole number, it is '4096'"),
        ({"hidden_size": 4096.0}, "hidden_size must be a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be from 1"),
        ({"vocab_size": -5}, "vocab_size must be from 1"),
        ({"head_dim": 10**30}, "head_dim must be from 1"),
        ({"num_key_value_heads": 3}, "num_attention_heads=32 must be a multiple"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be a positive number, it is nan"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be a positive"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a number"),
        ({"rope_theta": 10**400}, "rope_theta must be a positive number, it is inf"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor=1.5"),
        ({"partial_rotary_factor": 0.001}, "even number from 2"),
        ({"head_dim": 6}, "even number from 2"),  # rotary_dim 3
        ({"attention_bias": 1}, "attention_bias must be true or false, it is 1"),
        ({"tie_word_embeddings": None}, "'tie_word_embeddings' is missing"),
        ({"torch_dtype": "int8"}, "torch_dtype must be one of float32, float16, bfloat16"),
        ({"torch_dtype": 16}, "torch_dtype must be a text"),
        (
            {"float_layers_id": 0},
            "float_layers_id must be a list of layer numbers or null, it is 0",
        ),
        ({"float_layers_id": [True]}, "float_layers_id must be a list of layer numbers"),
        ({"float_layers_id": ["0"]}, "float_layers_id must be a list of layer numbers"),
        ({"float_layers_id": {"0": 1}}, "float_layers_id must be a list of layer numbers"),
        ({"float_layers_id": [0, 40]}, "float_layers_id has layer 40, and num_hidden_layers=40"),
        ({"float_layers_id": [-1]}, "float_layers_id has layer -1"),
        ({"eos_token_id": "<|user|>"}, "eos_token_id must be a token id"),
        ({"eos_token_id": [1, -1]}, "eos_token_id must be a token id"),
        ({"rope_scaling": 4.0}, "rope_scaling must be an object or null"),
        ({"rope_parameters": {"rope_theta": 5e6}}, "rope_theta is 10000.0 at the top and 5000000"),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], words: str):
    with pytest.raises(ConfigError) as caught:
        read(**changes)
    assert words in str(caught.value)
    assert str(caught.value).startswith("config.json: ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "llama"}, "model_type 'llama' is not known; this version runs: glm4"),
        ({"model_type": "glm"}, "architectures must be ['GlmForCausalLM']"),
        ({"model_type": "glm4_moe"}, "'glm4_moe' is a mixture of experts, which is not supported"),
        ({"model_type": "glm4_moe"}, "run it with vLLM, or on Ascend with MindSpore Transformers"),
        ({"model_type": "glm4_moe_lite"}, "latent attention, which is not supported here: run it"),
        ({"model_type": "glm4v"}, "'glm4v' is a model that sees images, which is not supported"),
        (
            {"model_type": None, "architectures": ["Glm4MoeForCausalLM"]},
            "architectures ['Glm4MoeForCausalLM'] is a mixture of experts, which is not supported "
            "here: run it with vLLM, or on Ascend with MindSpore Transformers",
        ),
        (
            {"model_type": None, "architectures": ["Glm4vForConditionalGeneration"]},
            "is a model that sees images, which is not supported here: run it with vLLM",
        ),
        ({"vision_config": {"depth": 24}}, "it has 'vision_config'"),
        ({"architectures": ["Glm4Model"]}, "architectures must be ['Glm4ForCausalLM']"),
        ({"architectures": "Glm4ForCausalLM"}, "architectures must be"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu', it is 'gelu'"),
        ({"rope_parameters": {"mrope_section": [8, 12, 12]}}, "'mrope_section'"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "it has 'quantization'"),
        ({"sliding_window": 4096}, "'sliding_window'"),
    ],
)
def test_what_this_version_cannot_run_is_refused_by_name(changes: dict[str, Any], words: str):
    with pytest.raises(UnsupportedError) as caught:
        read(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize("architectures", [["Glm4ForCausalLM"], ["New"], [], [5], "Glm4Moe", None])
def test_a_missing_model_type_is_named_where_the_architecture_tells_no_more(architectures: Any):
    with pytest.raises(ConfigError, match="'model_type' is missing"):
        read(model_type=None, architectures=architectures)


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": None, "rope_scaling": None, "quantization_config": None},
        {"sliding_window": 4096, "use_sliding_window": False},
        {"rope_scaling": {"rope_type": "default"}},
        {"architectures": None},
        {"rope_theta": 10000},
        {"dtype": "bfloat16"},
        {"rope_parameters": TRANSFORMERS_5["rope_parameters"]},
        {"some_future_key": {"nested": 1}},
        {"float_layers_id": [], "world_size": 8},
        {"float_layers_id": None},
    ],
)
def test_harmless_keys_change_nothing(changes: dict[str, Any]):
    assert read(**changes) == read()


@pytest.mark.parametrize(
    ("raw", "ids"), [(7, (7,)), ([7, 8], (7, 8)), (None, ()), ([], ())], ids=str
)
def test_eos_token_id_may_be_one_several_or_none(raw: Any, ids: tuple[int, ...]):
    assert read(eos_token_id=raw).eos_token_ids == ids


def test_missing_token_ids_and_dtype_are_none():
    keys = ("eos_token_id", "pad_token_id", "torch_dtype", "tie_word_embeddings")
    raw = {key: value for key, value in TRANSFORMERS_4.items() if key not in keys}
    config = GlmConfig.from_dict(raw, "config.json")
    assert (config.eos_token_ids, config.bos_token_id, config.pad_token_id) == ((), None, None)
    assert config.torch_dtype is None
    assert config.tie_word_embeddings is False


def test_dtype_wins_over_the_older_torch_dtype():
    assert read(dtype="float16").torch_dtype == "float16"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"model_type": "glm4",', "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1]", "must hold a JSON object, it holds a list"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
    ids=["cut off", "not UTF-8", "empty", "nested too deep", "list", "LFS pointer"],
)
def test_a_broken_file_is_one_sentence_with_its_path(tmp_path: Path, content: bytes, words: str):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        GlmConfig.from_hf(tmp_path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_harmless(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(TRANSFORMERS_4), encoding="utf-8-sig")
    assert GlmConfig.from_hf(str(tmp_path)) == read()


def test_folder_mistakes_are_told_apart(tmp_path: Path):
    file = tmp_path / "file"
    empty = tmp_path / "empty"
    empty.mkdir()
    file.touch()
    for folder, words in (
        (tmp_path / "nowhere", "does not exist"),
        (file, "is a file, not a checkpoint folder"),
        (empty, "is empty"),
        (tmp_path, "has no config.json"),
        (tmp_path / ("x" * 300), "Cannot open"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            GlmConfig.from_hf(folder)
        assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["Glm4Config", "GlmConfig"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"tie_word_embeddings": True, "eos_token_id": None, "attention_bias": False},
        {"torch_dtype": "float16", "num_key_value_heads": 8, "partial_rotary_factor": 1.0},
    ],
    ids=str,
)
def test_files_of_transformers_4_load(tmp_path: Path, arguments: dict[str, Any], name: str):
    transformers = pytest.importorskip("transformers")
    theirs = getattr(transformers, name)(**arguments)
    theirs.save_pretrained(tmp_path)
    ours = GlmConfig.from_hf(tmp_path)
    for key in (*ARCHITECTURE_KEYS, "tie_word_embeddings", "pad_token_id", "bos_token_id"):
        assert getattr(ours, key) == getattr(theirs, key), key
    assert ours.eos_token_ids == tuple(theirs.eos_token_id or ())
    assert ours.torch_dtype == arguments.get("torch_dtype")


def test_an_absurd_number_of_layers_is_refused_at_once():
    with pytest.raises(ConfigError, match="num_hidden_layers must be at most 1000, it is 20000000"):
        read(num_hidden_layers=20_000_000)
