"""The report of `inspect`: what a folder holds, or the sentence why it cannot be loaded."""

import base64
import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from mindformers_glm import LLM
from mindformers_glm.backends.cpu.backend import CpuBackend
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.run_config import load_run_config
from mindformers_glm.core.errors import (
    CheckpointError,
    ConfigError,
    MemoryBudgetError,
    UnsupportedError,
)
from mindformers_glm.serving.cli import main
from mindformers_glm.serving.inspect.command import inspect_checkpoint, inspect_folder
from mindformers_glm.weights.rules import build_rules
from tests.unit.config.predict_arguments import predict_arguments
from tests.unit.tiny_config import TINY_CONFIG

# By hand: embedding, final norm, and per layer four norms, q, k, v, o, gate_up and down.
NUM_PARAMETERS = 33 * 24 + 24 + 2 * (4 * 24 + (64 + 32 + 32 + 64 + 80 + 40) * 24)


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(TINY_CONFIG))
    shapes = {
        source.name: source.shape
        for rule in build_rules(GlmConfig.from_hf(tmp_path))
        for source in rule.sources
    }
    assert sum(math.prod(shape) for shape in shapes.values()) == NUM_PARAMETERS
    tensors = {
        name: np.zeros(shape, np.float32 if len(shape) == 1 else np.float16)
        for name, shape in shapes.items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def save_byte_tokenizer(folder: Path, size: int) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:size]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))


def values(folder: Path) -> dict[str, str]:
    lines = [line.split("  ", 1) for line in inspect_checkpoint(folder).splitlines()]
    return {name: value.strip() for name, value in lines}


def test_architecture_and_sizes_are_reported(tiny_folder: Path):
    found = values(tiny_folder)
    assert found["checkpoint"] == str(tiny_folder)
    assert found["architecture"] == "Glm4ForCausalLM (model_type glm4)"
    assert found["layers"] == "2"
    assert found["norms"] == "before and after attention and MLP"
    assert found["hidden size"] == "24, MLP 40"
    assert found["attention"] == "4 heads, 2 KV heads of 16, without q/k/v bias"
    assert found["RoPE"] == "theta 10000 on 8 of 16 columns"
    assert found["context"] == "128 tokens"
    assert found["vocabulary"] == "33, tied output"


def test_yarn_is_reported_with_its_longer_context(tiny_folder: Path):
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    (tiny_folder / "config.json").write_text(json.dumps(TINY_CONFIG | {"rope_scaling": scaling}))
    found = values(tiny_folder)
    assert found["RoPE"].endswith("YaRN 4 times 128 tokens, attention factor 1.139")
    assert found["context"] == "512 tokens"


def test_parameters_bytes_and_files_are_counted(tiny_folder: Path):
    found = values(tiny_folder)
    assert found["parameters"] == f"{NUM_PARAMETERS:,}"
    norm_bytes = (1 + 2 * 4) * 24 * 4
    matrix_bytes = (NUM_PARAMETERS - (1 + 2 * 4) * 24) * 2
    assert found["stored as"] == f"float16 {matrix_bytes / 1024:.1f} KB, float32 {norm_bytes} bytes"
    assert found["files"] == "1 safetensors file"
    assert found["tensors"] == "all 22 accounted for"


def _columns(text: str) -> list[str]:
    return [column.strip() for column in text.split("  ") if column.strip()]


def _kib(num_bytes: int) -> str:
    return f"{num_bytes / 1024:.1f} KB"


def _weights(bytes_per_weight: float, scale_bytes: int, ranks: int, vocab: int = 33) -> int:
    """By hand: norms in float32, the embedding in float16, the linear layers as asked."""
    kept = (1 + 2 * 4) * 24 * 4 + vocab // ranks * 24 * 2
    kv_rows = 2 * 32 // min(ranks, 2)  # two key-value heads: four ranks share them
    rows = vocab // ranks + 2 * (64 // ranks + kv_rows + 80 // ranks)  # of 24 columns
    # o_proj and down_proj have 24 rows of fewer columns; quantized, these are one group each, which
    # is whole on every rank.
    columns = 64 + 40 if scale_bytes else (64 + 40) // ranks
    weights = rows * 24 + 2 * 24 * columns
    scales = (rows + 4 * 24) * scale_bytes
    return kept + int(weights * bytes_per_weight) + scales


def test_weights_in_memory_are_counted_for_each_format(tiny_folder: Path):
    found = values(tiny_folder)
    assert _columns(found["weights in float16"])[0] == _kib(_weights(2, 0, 1))
    assert _columns(found["weights in w8a16"])[0] == _kib(_weights(1, 4, 1))
    assert _columns(found["weights in w8a8_dynamic"])[0] == _kib(_weights(1, 4, 1))
    # A row is shorter than a group.
    assert _columns(found["weights in w4a16"])[0] == _kib(_weights(0.5, 4, 1))
    assert _columns(found["KV cache a token in float16"])[0] == "256 bytes"


def test_layers_that_no_quantization_touches_are_named_and_counted(tiny_folder: Path):
    assert "never quantized" not in values(tiny_folder)
    (tiny_folder / "config.json").write_text(json.dumps(TINY_CONFIG | {"float_layers_id": [1]}))
    found = values(tiny_folder)
    assert found["never quantized"] == "layers 1"
    # A byte more than int8 for each of the layer's weights, and no scale for its rows.
    num_weights, num_rows = (64 + 32 + 32 + 64 + 80 + 40) * 24, 128 + 24 + 80 + 24
    expected = _kib(_weights(1, 4, 1) + num_weights - 4 * num_rows)
    assert _columns(found["weights in w8a16"])[0] == expected


def test_weights_and_cache_are_counted_for_each_split(tiny_folder: Path):
    (tiny_folder / "config.json").write_text(json.dumps(TINY_CONFIG | {"vocab_size": 32}))
    config = GlmConfig.from_hf(tiny_folder)
    shapes = {s.name: s.shape for rule in build_rules(config) for s in rule.sources}
    save_file(
        {n: np.zeros(s, np.float16) for n, s in shapes.items()}, tiny_folder / "model.safetensors"
    )
    found = values(tiny_folder)
    assert _columns(found["model_parallel"]) == ["1", "2", "4"]  # four heads: not 8
    for name, size, scale in (("float16", 2, 0), ("w8a16", 1, 4), ("w4a16", 0.5, 4)):
        expected = [_kib(_weights(size, scale, ranks, 32)) for ranks in (1, 2, 4)]
        assert _columns(found[f"weights in {name}"]) == expected
    caches = _columns(found["KV cache a token in float16"])
    assert caches == ["256 bytes", "128 bytes", "128 bytes"]


def test_whether_it_fits_here_is_said(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch):
    where = "mindformers_glm.backends.cpu.host_share.read_available_memory"
    monkeypatch.setattr(where, lambda: 2**30)
    assert values(tiny_folder)["this machine"].startswith("runs it in bfloat16: ")
    assert (
        "of 1.0 GB available, for one sequence of 128 tokens" in values(tiny_folder)["this machine"]
    )
    monkeypatch.setattr(where, lambda: 20000)
    refusal = values(tiny_folder)["this machine"]
    assert refusal.startswith("cannot run it as it is: The model needs")
    assert "19.5 KB of memory is available" in refusal
    monkeypatch.setattr(where, lambda: None)
    assert "an unknown amount" in values(tiny_folder)["this machine"]


def test_kv_cache_is_in_the_type_it_will_have(tiny_folder: Path):
    # 2 layers * keys and values * 2 KV heads * 16 * 2 bytes = 256
    assert values(tiny_folder)["KV cache"].startswith("256 bytes a token in float16, 32.0 KB for")


def test_saved_constants_are_no_parameters(tiny_folder: Path):
    constants = {"model.rotary_emb.inv_freq": np.zeros(4, np.float32)}
    tensors = load_file(tiny_folder / "model.safetensors")
    save_file(tensors | constants, tiny_folder / "model.safetensors")
    assert values(tiny_folder)["parameters"] == f"{NUM_PARAMETERS:,}"


def test_the_types_of_predict_and_of_llm_are_both_named(tiny_folder: Path):
    raw = {key: value for key, value in TINY_CONFIG.items() if key != "torch_dtype"}
    (tiny_folder / "config.json").write_text(json.dumps(raw))
    # As stored, where the config says nothing.
    assert values(tiny_folder)["runs as"].startswith("bfloat16 by predict, float16 by LLM(DIR), ")
    (tiny_folder / "config.json").write_text(json.dumps(raw | {"torch_dtype": "bfloat16"}))
    assert values(tiny_folder)["runs as"].startswith("bfloat16 by predict, unless ")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", None])
def test_the_types_are_those_of_a_run(tiny_folder: Path, dtype: str | None):
    changes = {"torch_dtype": dtype}
    (tiny_folder / "config.json").write_text(json.dumps(TINY_CONFIG | changes))
    facts = inspect_folder(tiny_folder).facts
    arguments = predict_arguments("--pretrained_model_dir", str(tiny_folder))
    run = load_run_config(arguments, environ={})
    with LLM(tiny_folder, **run.llm) as llm:
        assert llm.settings.params_dtype == facts["params_dtype"]
        assert llm.settings.compute_dtype == facts["compute_dtype"]
        assert llm.settings.kv_dtype == facts["memory"]["kv_cache_dtype"]
        assert llm.settings.max_model_len == facts["max_model_len"]
    with LLM(tiny_folder) as llm:
        assert llm.settings.params_dtype == facts["params_dtype_of_llm"]


def inspect(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    exit_code = main(["inspect", *words])
    captured = capsys.readouterr()
    return exit_code, captured.out, captured.err


def test_too_little_memory_is_exit_code_1_with_the_sentence_of_a_run(
    tiny_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert inspect(capsys, str(tiny_folder))[0] == 0
    where = "mindformers_glm.backends.cpu.host_share.read_available_memory"
    monkeypatch.setattr(where, lambda: 20000)
    exit_code, report, _ = inspect(capsys, str(tiny_folder))
    assert exit_code == 1
    arguments = predict_arguments("--pretrained_model_dir", str(tiny_folder))
    with pytest.raises(MemoryBudgetError) as caught:
        LLM(tiny_folder, **load_run_config(arguments, environ={}).llm)
    assert f"cannot run it as it is: {caught.value}\n" in report
    exit_code, report, _ = inspect(capsys, "--json", str(tiny_folder))
    facts = json.loads(report)
    assert (exit_code, facts["can_run"], facts["obstacle"]) == (1, False, str(caught.value))


def test_json_has_the_facts_of_the_report(tiny_folder: Path, capsys: pytest.CaptureFixture[str]):
    save_byte_tokenizer(tiny_folder, 33)
    exit_code, output, _ = inspect(capsys, str(tiny_folder), "--json")
    facts = json.loads(output)
    assert (exit_code, facts["can_run"], facts["obstacle"]) == (0, True, None)
    assert facts["checkpoint"] == str(tiny_folder)
    assert facts["config"]["hidden_size"] == 24
    assert facts["num_parameters"] == NUM_PARAMETERS
    assert facts["files"] == ["model.safetensors"]
    assert facts["memory"]["ranks"] == [1, 2, 4]
    assert facts["memory"]["weights_bytes"]["w8a16"][0] == _weights(1, 4, 1)
    assert facts["memory"]["kv_cache_bytes_per_token"][0] == 256
    assert facts["eos_token_ids"] == [3, 4]
    assert (facts["tokenizer"], facts["chat_template"]) == ("tokenizer.json", None)
    assert (facts["tensors_not_used"], facts["adapter"]) == ({}, None)


def test_json_says_why_a_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    exit_code, output, errors = inspect(capsys, "--json", str(tmp_path / "nowhere"))
    assert exit_code == 1
    assert json.loads(output)["can_run"] is False
    assert errors == f"error: {json.loads(output)['obstacle']}\n"


def test_what_is_not_used_is_named(tiny_folder: Path, capsys: pytest.CaptureFixture[str]):
    tensors = load_file(tiny_folder / "model.safetensors")
    head = {"v_head.summary.weight": np.zeros((1, 24), np.float16)}
    save_file(tensors | head, tiny_folder / "model.safetensors")
    save_file(head, tiny_folder / "adapter_model.safetensors")
    found = values(tiny_folder)
    assert found["tensors"].endswith("not used: v_head.summary.weight (a value head)")
    assert found["adapter"].startswith("a LoRA adapter (adapter_model.safetensors), which is not")
    assert inspect_folder(tiny_folder).facts["tensors_not_used"] == dict.fromkeys(
        head, "a value head"
    )
    other = {"lm_head.weight": np.ones((33, 24), np.float16)}  # config.json ties them
    save_file(tensors | other, tiny_folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not the same as model"):
        inspect_checkpoint(tiny_folder)


def test_what_a_folder_lacks_for_prompts_is_said(tiny_folder: Path):
    found = values(tiny_folder)
    assert found["end of text"] == "token ids [3, 4] (config.json)"
    assert found["generation"] == "no generation_config.json"
    assert found["tokenizer"].startswith("none")
    assert "chat template" not in found
    save_byte_tokenizer(tiny_folder, 33)
    assert values(tiny_folder)["chat template"].startswith("none")


def test_generation_settings_and_tokenizer_files_are_reported(tiny_folder: Path):
    generation = {"do_sample": True, "temperature": 0.6, "transformers_version": "4.51.3"}
    (tiny_folder / "generation_config.json").write_text(json.dumps(generation))
    save_byte_tokenizer(tiny_folder, 33)
    (tiny_folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ x }}"}))
    found = values(tiny_folder)
    assert found["generation"] == "do_sample=True, temperature=0.6"
    assert found["tokenizer"] == "tokenizer.json"
    assert found["chat template"] == "in tokenizer_config.json"
    (tiny_folder / "chat_template.jinja").write_text("{{ x }}")
    assert values(tiny_folder)["chat template"] == "chat_template.jinja"


def test_the_ends_of_text_are_those_a_run_stops_at(tiny_folder: Path):
    save_byte_tokenizer(tiny_folder, 33)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    (tiny_folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": letters[12]}))
    assert values(tiny_folder)["end of text"] == "token ids [3, 4, 12] (config.json, tokenizer)"
    (tiny_folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [20, 4, 2]}))
    assert values(tiny_folder)["end of text"] == (
        "token ids [2, 3, 4, 12, 20] (config.json, generation_config.json, tokenizer)"
    )
    (tiny_folder / "config.json").write_text(json.dumps(TINY_CONFIG | {"eos_token_id": None}))
    (tiny_folder / "tokenizer.json").unlink()
    (tiny_folder / "generation_config.json").unlink()
    assert values(tiny_folder)["end of text"] == "no token ids: answers end by their length alone"


def test_a_tokenizer_model_is_reported_and_checked_too(tiny_folder: Path):
    ranks = [base64.b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)]
    (tiny_folder / "tokenizer.model").write_bytes(b"".join(ranks))
    names = {256: "[gMASK]", 257: "<sop>"}
    added = {token_id: {"content": name, "special": True} for token_id, name in names.items()}
    (tiny_folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(CheckpointError, match="token ids up to 257, the network only vocab_size"):
        inspect_checkpoint(tiny_folder)


def test_a_folder_that_cannot_be_loaded_is_refused_with_its_sentence(tiny_folder: Path):
    (tiny_folder / "generation_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"generation_config\.json is not valid JSON"):
        inspect_checkpoint(tiny_folder)
    (tiny_folder / "generation_config.json").write_text(json.dumps({"num_beams": 4}))
    with pytest.raises(UnsupportedError, match="num_beams=4"):
        inspect_checkpoint(tiny_folder)
    (tiny_folder / "generation_config.json").unlink()
    (tiny_folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizer"):
        inspect_checkpoint(tiny_folder)
    save_byte_tokenizer(tiny_folder, 34)
    with pytest.raises(CheckpointError, match="token ids up to 33, the network only vocab_size=33"):
        inspect_checkpoint(tiny_folder)
    (tiny_folder / "tokenizer.json").unlink()
    (tiny_folder / "config.json").write_text(json.dumps(TINY_CONFIG | {"vocab_size": 40}))
    with pytest.raises(CheckpointError, match="by vocab_size"):
        inspect_checkpoint(tiny_folder)
    with pytest.raises(ConfigError, match="does not exist"):
        inspect_checkpoint(tiny_folder / "nowhere")


def test_a_chat_template_that_is_no_jinja_is_refused_as_predict_does(tiny_folder: Path):
    save_byte_tokenizer(tiny_folder, 33)
    (tiny_folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{% if %}"}))
    with pytest.raises(CheckpointError, match=r"chat template of .* is broken at line 1"):
        inspect_checkpoint(tiny_folder)


def test_a_folder_is_described_where_the_default_device_cannot_be_used(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(CpuBackend, "find_obstacle", lambda backend: "There are no kernels.")
    assert values(tiny_folder)["this machine"] == "cannot run it as it is: There are no kernels."
    assert inspect_folder(tiny_folder).facts["can_run"] is False
