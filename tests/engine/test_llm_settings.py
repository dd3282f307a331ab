"""What `LLM` makes of its arguments, and what it refuses before anything is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import CheckpointError, ConfigError, MemoryBudgetError
from mindformers_glm.engine.llm import LLM
from tests.engine.conftest import SHORT, FakeBackend
from tests.engine.fake_runner import FakeRunner


def test_settings_reach_the_runner(checkpoint: Path, backend: FakeBackend) -> None:
    LLM(checkpoint, max_model_len=40, max_num_seqs=3, block_size=16, params_dtype="bfloat16")
    assert backend.settings == [
        RunnerSettings(
            params_dtype="bfloat16",
            compute_dtype="bfloat16",
            rotary_dtype=None,
            max_num_seqs=3,
            max_num_batched_tokens=512,
            max_model_len=40,
            block_size=16,
        )
    ]


@pytest.mark.parametrize(
    ("rotary_dtype", "compute_dtype", "is_told"),
    [
        ("bfloat16", "float32", True),
        ("float16", "float32", True),
        ("float32", "float32", False),
        (None, "float32", False),
        ("bfloat16", "bfloat16", False),
    ],
)
def test_tables_shorter_than_float32_products_are_told(
    rotary_dtype: str | None,
    compute_dtype: str,
    is_told: bool,
    checkpoint: Path,
    backend: FakeBackend,
    capsys: pytest.CaptureFixture[str],
) -> None:
    types = {"params_dtype": compute_dtype, "compute_dtype": compute_dtype}
    LLM(checkpoint, rotary_dtype=rotary_dtype, **types)
    told = [line for line in capsys.readouterr().err.splitlines() if "rotary_dtype" in line]
    assert len(told) == is_told
    assert not is_told or f"rotary_dtype {rotary_dtype} rounds the rotary tables" in told[0]


@pytest.mark.parametrize(("given", "expected"), [(None, 11), (0, 0), (12, 12)])
def test_the_draft_length_reaches_the_engine(
    checkpoint: Path, given: int | None, expected: int
) -> None:
    llm = LLM(checkpoint, prompt_lookup_num_tokens=given)
    assert llm.engine.config.prompt_lookup_num_tokens == expected


def test_the_number_of_threads_reaches_the_backend(checkpoint: Path, backend: FakeBackend) -> None:
    for count in (1, None):
        LLM(checkpoint, num_threads=count)
    assert backend.num_threads == [1, None]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_that_run_in_another_type_are_told(
    checkpoint: Path, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    LLM(checkpoint, params_dtype=dtype)
    expected = f"mindformers_glm: weights stored in float32 run in {dtype} (params_dtype)\n"
    assert capsys.readouterr().err == (expected if dtype != "float32" else "")


@pytest.mark.parametrize("is_enabled", [True, False])
def test_prefix_caching_can_be_switched_off(checkpoint: Path, is_enabled: bool) -> None:
    llm = LLM(checkpoint, enable_prefix_caching=is_enabled, block_size=4)
    outputs = llm.generate(["abcdefgh", "abcdefghij"], SHORT)
    assert [output.num_cached_tokens for output in outputs] == [0, 8 if is_enabled else 0]


@pytest.mark.parametrize("wrong", [-1, 1.5, "7", True])
def test_a_wrong_draft_length_fails_before_loading(
    checkpoint: Path, backend: FakeBackend, wrong: Any
) -> None:
    with pytest.raises(ConfigError, match="prompt_lookup_num_tokens must be a whole number"):
        LLM(checkpoint, prompt_lookup_num_tokens=wrong)
    assert backend.settings == []


def test_a_length_beyond_the_checkpoints_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_model_len=65 .*max_position_embeddings=64"):
        LLM(checkpoint, max_model_len=65)


def test_too_small_a_cap_fails_before_loading(checkpoint: Path, backend: FakeBackend) -> None:
    with pytest.raises(MemoryBudgetError, match=r"but max_device_memory allows 10\.0 KB"):
        LLM(checkpoint, max_device_memory="10KB")
    assert backend.settings == []


def test_the_cap_limits_the_blocks(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeRunner, "__init__", _init_with_large_blocks)
    llm = LLM(checkpoint, max_device_memory="64MB", max_num_seqs=32)
    assert llm.engine.pool.num_blocks == 64


def _init_with_large_blocks(self: FakeRunner, vocab_size: int, block_size: int) -> None:
    self.vocab_size, self.block_size = vocab_size, block_size
    self.weights_bytes = self.mapped_weight_bytes = self.workspace_bytes = 0
    self.kv_block_bytes = 2**20
    self.rows_per_step = []


@pytest.mark.parametrize("size", ["59", "0GB", "much", "-1GB", -1, 0, 2.5, True])
def test_a_size_that_is_none_is_refused(checkpoint: Path, size: Any) -> None:
    with pytest.raises(ConfigError, match="max_device_memory must be a size"):
        LLM(checkpoint, max_device_memory=size)


def test_a_tokenizer_of_another_model_is_refused(checkpoint: Path, backend: FakeBackend) -> None:
    path = checkpoint / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 300, "content": "<far>"})
    content["model"]["vocab"]["<far>"] = 300
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="token ids up to 300, the network only vocab_size"):
        LLM(checkpoint)
    assert backend.settings == []


def test_wrong_tensors_are_found_before_loading(
    checkpoint: Path, edit: Callable[..., None], backend: FakeBackend
) -> None:
    edit("config.json", num_hidden_layers=3)
    with pytest.raises(CheckpointError):
        LLM(checkpoint)
    assert backend.settings == []


@pytest.mark.parametrize("folder_name", [5, None, b"/models"])
def test_a_folder_that_is_no_path_is_refused(backend: FakeBackend, folder_name: Any) -> None:
    with pytest.raises(ConfigError, match="pretrained_model_dir must be the path of"):
        LLM(folder_name)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_num_seqs": "3"}, "max_num_seqs must be a whole number, got '3'"),
        ({"max_num_seqs": 2.5}, "max_num_seqs must be a whole number, got 2.5"),
        ({"seed": "a"}, "seed must be a whole number of at least 0, got 'a'"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"num_threads": 0}, "num_threads must be a whole number from 1 to"),
        ({"num_threads": 10_000}, "num_threads must be a whole number from 1 to"),
        ({"enable_prefix_caching": 1}, "enable_prefix_caching must be True or False, got 1"),
        ({"quantization": "int8"}, "quantization must be one of w8a16, .*, got 'int8'"),
        ({"quantization_group_size": 64}, "quantization is not set"),
        ({"chat_template": "nope.jinja"}, "'nope.jinja' is neither the name of a template"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs must be an object such as"),
        ({"continue_final_message": 1}, "continue_final_message must be True or False, got 1"),
        ({"apply_chat_template": "maybe"}, "must be True, False or \"auto\", got 'maybe'"),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused_before_loading(
    checkpoint: Path, backend: FakeBackend, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM(checkpoint, **setting)
    assert backend.settings == []


def test_types_have_the_short_names_of_the_command_line(
    checkpoint: Path, backend: FakeBackend
) -> None:
    LLM(checkpoint, params_dtype="bf16")
    assert backend.settings[0].params_dtype == "bfloat16"


def test_quantization_reaches_the_runner(checkpoint: Path, backend: FakeBackend) -> None:
    LLM(checkpoint, quantization="w4a16", quantization_group_size=64)
    settings = backend.settings[0]
    assert (settings.quantization, settings.quantization_group_size) == ("w4a16", 64)


@pytest.mark.parametrize("name", ["tool_call_parser", "reasoning_parser"])
def test_unknown_parsers_are_refused_before_loading(
    checkpoint: Path, backend: FakeBackend, name: str
) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be one of none, .*, got 'x'"):
        LLM(checkpoint, **{name: "x"})
    assert backend.settings == []


@pytest.mark.parametrize("wrong", [0, -1, True, "2", 2.0])
def test_a_model_parallel_that_is_no_number_of_processes_is_refused(
    checkpoint: Path, wrong: Any
) -> None:
    with pytest.raises(ConfigError, match="model_parallel must be a whole number of at least 1"):
        LLM(checkpoint, device_target="CPU", model_parallel=wrong)


def test_a_split_model_needs_a_launcher(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"model_parallel 2 needs 2 processes.*msrun_launcher"):
        LLM(checkpoint, device_target="CPU", model_parallel=2)
