"""What the YAML schema accepts, and how it refuses the rest."""

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mindformers_glm.config.refused_settings import REFUSED
from mindformers_glm.config.settings_reader import read_yaml_settings, settings_from_tree
from mindformers_glm.config.settings_table import SETTINGS
from mindformers_glm.config.value_types import parse_size
from mindformers_glm.core.errors import ConfigError

# Every key of configs/glm4/predict_glm4.yaml in mindformers 1.7.0.
UPSTREAM_KEYS = """
    seed output_dir load_checkpoint use_parallel run_mode use_legacy load_ckpt_format trainer.type
    trainer.model_name parallel_config.data_parallel parallel_config.model_parallel
    pretrained_model_dir model.model_config.compute_dtype
    model.model_config.layernorm_compute_dtype model.model_config.softmax_compute_dtype
    model.model_config.rotary_dtype model.model_config.params_dtype context.mode
    context.enable_graph_kernel context.ascend_config.precision_mode context.max_device_memory
    context.save_graphs context.save_graphs_path parallel.parallel_mode parallel.enable_alltoall
"""


def nested(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


@pytest.mark.parametrize("name", UPSTREAM_KEYS.split())
def test_every_key_of_upstreams_file_is_a_setting(name: str) -> None:
    assert SETTINGS.find(name) is not None


def test_names_and_defaults_of_the_table_are_consistent() -> None:
    names = [name for setting in SETTINGS for name in (setting.path, *setting.aliases)]
    assert len(names) == len(set(names))
    assert not set(names) & set(REFUSED)
    for setting in SETTINGS:
        assert bool(setting.only) == bool(setting.because), setting.path
        if setting.only and setting.default is not None:
            assert setting.default in setting.only


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("run_mode", "train", "runs inference only"),
        ("run_mode", "finetune", "runs inference only"),
        ("run_mode", "eval", "runs inference only"),
        ("use_legacy", True, "Mcore"),
        ("load_ckpt_format", "ckpt", "safetensors"),
        ("context.mode", 2, "PYNATIVE_MODE"),
        ("context.mode", "GRAPH", "PYNATIVE_MODE"),
        ("context.device_target", "GPU", "CPU or Ascend"),
        ("parallel_config.data_parallel", 2, "no data parallelism"),
        ("parallel_config.pipeline_stage", 2, "model_parallel only"),
        ("parallel.parallel_mode", 1, "MANUAL_PARALLEL"),
        ("model.model_config.layernorm_compute_dtype", "bfloat16", "float32"),
        ("model.model_config.hidden_size", 4096, r"config\.json"),
        ("model.model_config.pet_config", {"pet_type": "slora"}, "LoRA"),
        ("optimizer", {"type": "AdamW"}, "runs inference only"),
        ("runner_config", {"epochs": 3}, "runs inference only"),
        ("processor", {"tokenizer": {"type": "x"}}, "tokenizer"),
        ("only_save_strategy", True, "Hugging Face files"),
        ("profile", True, "not offered"),
    ],
)
def test_what_cannot_work_here_is_refused_with_its_reason(
    name: str, value: Any, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        settings_from_tree(nested(name, value), "in x.yaml")
    assert name in str(error.value)
    assert "x.yaml" in str(error.value)


@pytest.mark.parametrize("key", ["quantization", "quantization_config", "quant_config"])
def test_upstreams_quantized_checkpoints_are_refused_and_ours_named(key: str) -> None:
    tree = nested(f"model.model_config.{key}", "ascend")
    with pytest.raises(ConfigError, match="the setting quantization at the top level"):
        settings_from_tree(tree, "in x.yaml")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("context.max_device_memroy", r"context\.max_device_memory"),
        ("max_device_memory", r"context\.max_device_memory"),
        ("model_config.compute_dtype", r"model\.model_config\.compute_dtype\?"),
        ("context.top_k", r"top_k\?"),
        ("contxt.mode", r"context\.mode\?"),
        ("temp", r"temperature\?"),
        ("model.model_config.params_type", r"model\.model_config\.params_dtype"),
        ("contxt", r"context\?"),
        ("predict_batchsize", "predict_batch_size"),
    ],
)
def test_unknown_key_is_an_error_that_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"in x.yaml: did you mean {nearest}"):
        settings_from_tree(nested(name, 1), "in x.yaml")


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("context.a", "context holds others, such as "),
        ("generation_config.foo", r"such as generation_config\."),
        ("nonsense", "--help lists them"),
        ("pipeline", "--help lists them"),
        ("my.own.key", "--help lists them"),
    ],
)
def test_nothing_is_suggested_for_a_key_that_no_other_is_like(name: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=f"Unknown setting {name} in x.yaml: .*{advice}"):
        settings_from_tree(nested(name, 1), "in x.yaml")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", "0"),
        ("seed", True),
        ("seed", -1),
        ("use_parallel", "False"),
        ("use_parallel", 0),
        ("context.max_device_memory", 59),
        ("context.max_device_memory", "59"),
        ("context.max_device_memory", "0GB"),
        ("context.mode", False),
        ("context.save_graphs", 4),
        ("temperature", "0.5"),
        ("temperature", float("nan")),
        ("temperature", 10**400),
        ("context.max_device_memory", "9" * 400 + "GB"),
        ("predict_batch_size", 0),
        ("predict_data", [1]),
        ("predict_data", []),
        ("model.model_config.params_dtype", "int8"),
        ("context", "CPU"),
        ("model.model_config", 3),
        ("seed", {"value": 1}),
    ],
)
def test_value_of_the_wrong_type_is_an_error(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} in x.yaml must be "):
        settings_from_tree(nested(name, value), "in x.yaml")


def test_empty_key_counts_as_left_out() -> None:
    tree = {"context": None, "save_file": None, "adapter_id": None}
    assert settings_from_tree(tree, "in x.yaml") == {}


def test_two_names_of_one_setting_must_agree() -> None:
    tree: dict[str, Any] = {"top_k": 3, "generation_config": {"top_k": 3}}
    assert settings_from_tree(tree, "in x.yaml")["top_k"].value == 3
    tree["top_k"] = 4
    with pytest.raises(ConfigError, match="mean the same setting but differ"):
        settings_from_tree(tree, "in x.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: [1", "not valid YAML"),
        (b"- 1\n- 2", "must hold `key: value` lines"),
        (b"", "must hold `key: value` lines"),
        (b"seed: \xff", "not UTF-8"),
        (b"seed: 2020-13-45", r"'2020-13-45' is neither a number nor a date \(line 1\)"),
        (b"seed: " + b"9" * 5000, r"99\.\.\. .*neither a number nor a date"),
        (b"seed: 1\ntop_k: 1\nseed: 2", r"key seed stands twice, first in line 1 \(line 3\)"),
        (b"a: {b: 1, b: 2}", r"key b stands twice"),
        (b"[" * 5000, "nested too deeply"),
        (b"a: !!python/object/apply:os.system ['x']", "not valid YAML"),
    ],
)
def test_file_that_is_no_settings_file_is_one_sentence(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        read_yaml_settings(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "a0: &a0 [1, 1]\n"
            + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 99)),
            "an alias is more than",
        ),
        (
            "a0: &a0 {x: 1}\n"
            + "".join(f"a{i}: &a{i}\n  <<: [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 99)),
            "an alias is more than",
        ),
        ("a: &a [*a]", "an alias is a part of itself"),
        ("a: &a {b: *a}", "an alias is a part of itself"),
        ("seed: 0x" + "f" * 5000, "is neither a number nor a date"),
        ("seed: 1" + ":59" * 30_000, "is neither a number nor a date"),
        ("a: !!bool maybe", "is neither a number nor a date"),
        ("a: !!int ''", "is neither a number nor a date"),
        ("[" * 90_000, "is nested too deeply"),
        ("a: b\n" * 100_000, "has more than"),
        ("x" * 100_000, "must hold `key: value` lines"),
    ],
)
def test_a_file_that_would_take_minutes_is_one_sentence(
    tmp_path: Path, content: str, words: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(content)
    begin = time.process_time()
    with pytest.raises(ConfigError, match=words) as problem:
        read_yaml_settings(path)
    assert time.process_time() - begin < 5
    assert len(str(problem.value)) < 500


def test_merge_keys_may_override(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "generation_config: &g {top_k: 3}\ncontext: {}\nmodel:\n  model_config:\n    <<: *g\n"
    )
    assert read_yaml_settings(path)["top_k"].value == 3


def test_dtypes_may_be_written_short() -> None:
    tree = nested("model.model_config.params_dtype", "bf16")
    given = settings_from_tree(tree, "in x.yaml")["model.model_config.params_dtype"]
    assert given.value == "bfloat16"


@pytest.mark.parametrize(
    ("text", "num_bytes"), [("59GB", 59 * 2**30), ("1.5GB", 3 * 2**29), ("200 MB", 200 * 2**20)]
)
def test_sizes_count_powers_of_two(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


def test_yaml_text_round_trips_through_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump({"predict_data": ["你好", "hi"]}), encoding="utf-8-sig")
    assert read_yaml_settings(path)["predict_data"].value == ("你好", "hi")
