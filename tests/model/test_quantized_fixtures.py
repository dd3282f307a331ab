"""Folders that the real tools wrote: their own logits, by the formats' arithmetic and by LLM.

msModelSlim 26.1.0 and llm-compressor 0.5.1 on tiny random models; the data is not the project's.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindformers_glm import LLM
from mindformers_glm.backends.cpu import library
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.segmented_linear import SegmentedLinear
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rule_checks import check_rules
from mindformers_glm.weights.rules import build_rules
from tests.conftest import relative_error
from tests.model import chatglm_layout, hf_oracle, stored_oracle

# msModelSlim's simulation of groups rounds its scales otherwise than it writes them (1.6e-3); its
# simulation of integer activations takes float products (1.7e-3 and 5.7e-3, other loaders too).
WEIGHT_ONLY = {
    "glm4_w8a16": 1e-4,
    "glm4_w8a16_sharded": 1e-4,
    "glm4_w4a16_pc": 1e-4,
    "glm4_w4a16_g64": 3e-3,
    "ct_glm4_w4a16_gptq": 3e-3,
    "glm4_gptq_from_ms": 3e-3,
    "glm4_awq_from_ms": 3e-3,
}
WITH_ACTIVATIONS = {
    "glm4_w8a8": 3e-3,
    "glm4_w8a8_bf16": 3e-3,
    "glm4_w8a8_safe_tensor": 3e-3,
    "glm4_w8a8s_lowbit": 1e-2,
    "glm4_w8a8_dynamic": 3e-3,
    "ct_glm4_w8a8_int8": 3e-3,
}
# These models have outliers and no norms behind a branch: one activation that is rounded the other
# way, for the last bit of a float sum, changes the rows behind it by a hundredth.
SENSITIVE = (
    "glm_w8a8",
    "chatglm_w8a8",
    "chatglm_w8a8_m1",
    "chatglm_w8a8_numpy",
    "chatglm_w8a8_m4",  # the tool has broken the model; its logits are of the broken one
)
# How the tool itself rounds dynamic activations; a card does otherwise.
_TOKENS = {"glm4_w8a8_dynamic": "msmodelslim", "ct_glm4_w8a8_int8": "llm-compressor"}
_SURE_ROWS = 3
# What the converters leave to the one who writes config.json, and whose logits are meant.
_CONVERTED: dict[str, dict[str, Any]] = {
    "glm4_gptq_from_ms": {"quant_method": "gptq", "sym": True, "desc_act": False},
    "glm4_awq_from_ms": {"quant_method": "awq", "version": "gemm", "zero_point": True},
}


def lay_out(fixtures: Path, name: str, folder: Path) -> Path:
    """The fixture as users have it: with the float model's config.json."""
    folder.mkdir()
    for file in (fixtures / name).iterdir():
        (folder / file.name).symlink_to(file)
    if name.endswith("_numpy"):  # one matrix of each layer is in the float checkpoint alone
        weights = fixtures / f"{name.split('_')[0]}_float" / "model.safetensors"
        (folder / weights.name).symlink_to(weights)
    if not (folder / "config.json").exists():
        source = fixtures / f"{name.split('_')[0]}_float" / "config.json"
        raw = json.loads(source.read_text())
        if name in _CONVERTED:
            raw["quantization_config"] = {"bits": 4, "group_size": 64} | _CONVERTED[name]
        (folder / "config.json").write_text(json.dumps(raw))
    return folder


@pytest.fixture
def fixtures(shared_fixtures: Path) -> Path:
    return shared_fixtures / "msmodelslim"


def tool_logits(fixtures: Path, name: str) -> tuple[list[int], np.ndarray]:
    """The prompt, and the logits of the tool's own simulation."""
    of_name = "glm4_w4a16_g64" if name in _CONVERTED else name
    logits = np.load(fixtures / of_name / "fakequant_logits.npy")[0]
    return np.load(fixtures / "calib_ids.npy")[0].tolist(), logits


@pytest.mark.parametrize("name", WEIGHT_ONLY | WITH_ACTIVATIONS)
def test_the_arithmetic_of_the_format_gives_the_tools_logits(
    name: str, fixtures: Path, tmp_path: Path
) -> None:
    found, expected = _simulate(name, fixtures, tmp_path, tokens=_TOKENS.get(name, "card"))
    error = relative_error(found, expected)
    assert error < (WEIGHT_ONLY | WITH_ACTIVATIONS)[name], error


@pytest.mark.parametrize("name", SENSITIVE)
def test_rows_before_the_first_rounding_that_differs_are_the_tools(
    name: str, fixtures: Path, tmp_path: Path
) -> None:
    found, expected = _simulate(name, fixtures, tmp_path, is_simulated=True)
    errors = [relative_error(*rows) for rows in zip(found, expected, strict=True)]
    assert max(errors[:_SURE_ROWS]) < 1e-4, errors
    assert relative_error(found, expected) < 3e-2


@pytest.mark.parametrize("name", ["glm_w8a8", "chatglm_w8a8", "glm4_w8a8_bf16"])
def test_integer_products_differ_from_the_simulation_by_the_rounding_of_the_bias(
    name: str, fixtures: Path, tmp_path: Path
) -> None:
    folder = lay_out(fixtures, name, tmp_path / "quantized")
    assert (
        stored_oracle.largest_difference_of_products(folder) <= 0.51
    )  # deq_scale is rounded to float32


def _simulate(
    name: str, fixtures: Path, tmp_path: Path, **how: Any
) -> tuple[np.ndarray, np.ndarray]:
    tmp_path.mkdir(exist_ok=True)
    folder = lay_out(fixtures, name, tmp_path / "quantized")
    dialect = next(part for part in name.split("_") if part.startswith(("glm", "chatglm")))
    source = fixtures / f"{dialect}_float"
    if dialect == "chatglm":
        source = chatglm_layout.to_glm(_with_rope_theta(source, tmp_path), tmp_path / "as_glm")
    model = hf_oracle.load(source)
    stored_oracle.put_into(model, folder, **how)
    prompt, expected = tool_logits(fixtures, name)
    return hf_oracle.logits_of(model, prompt), expected


def _with_rope_theta(source: Path, tmp_path: Path) -> Path:
    """In float32, as the tool computes on the CPU."""
    folder = tmp_path / "chatglm"
    folder.mkdir()
    raw = json.loads((source / "config.json").read_text()) | {"torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(raw))
    tensors = load_file(source / "model.safetensors")
    save_file(
        {name: t.astype(np.float32) for name, t in tensors.items()}, folder / "model.safetensors"
    )
    return folder


@pytest.mark.parametrize("name", WEIGHT_ONLY)
def test_weight_only_folders_run_with_the_tools_logits(
    name: str, fixtures: Path, tmp_path: Path
) -> None:
    folder = lay_out(fixtures, name, tmp_path / "quantized")
    prompt, expected = tool_logits(fixtures, name)
    with LLM(folder, params_dtype="float32", max_model_len=64) as llm:
        assert relative_error(llm.logits(prompt), expected) < WEIGHT_ONLY[name]


@pytest.mark.parametrize("isa", ["avx2", "avx512", "amx_emulated", "portable"])
@pytest.mark.parametrize("name", WITH_ACTIVATIONS)
def test_integer_activations_run_with_the_tools_logits(
    name: str, isa: str, fixtures: Path, tmp_path: Path
) -> None:
    """Or with those of a card, where the tool simulates another rounding of tokens."""
    if isa not in library.available_isas():
        pytest.skip(f"this machine cannot run {isa}")
    folder = lay_out(fixtures, name, tmp_path / "quantized")
    prompt, expected = tool_logits(fixtures, name)
    if name in _TOKENS:
        expected, _ = _simulate(name, fixtures, tmp_path / "card")
    before = library.isa()
    library.select_isa(isa)
    try:
        with LLM(folder, params_dtype="float32", max_model_len=64) as llm:
            kept = {scheme and scheme.name for _, scheme in llm.settings.stored_schemes}
            error = relative_error(llm.logits(prompt), expected)
    finally:
        library.select_isa(before)
    assert any(kept), kept
    assert error < WITH_ACTIVATIONS[name], error


@pytest.mark.parametrize("name", [*WITH_ACTIVATIONS, *SENSITIVE])
def test_integer_activations_run_as_a_card_computes_them(
    name: str, fixtures: Path, tmp_path: Path
) -> None:
    """Also where an activation is rounded otherwise in the tool's simulation than on a card."""
    folder = lay_out(fixtures, name, tmp_path / "quantized")
    expected, _ = _simulate(name, fixtures, tmp_path / "card")
    prompt, _ = tool_logits(fixtures, name)
    with LLM(folder, params_dtype="float32", max_model_len=64) as llm:
        found = llm.logits(prompt)
    rows = [relative_error(*pair) for pair in zip(found, expected, strict=True)]
    assert np.median(rows) < 1e-6, rows
    assert relative_error(found, expected) < 1e-4


def test_layers_in_parts_for_ranks_are_quantized_as_the_tool_says(
    fixtures: Path, tmp_path: Path
) -> None:
    """Each part's integers by its own scales, from the float checkpoint's columns."""
    folder = lay_out(fixtures, "chatglm_w8a8_tp2", tmp_path / "quantized")
    floats = load_file(fixtures / "chatglm_float" / "model.safetensors")
    config, seen = GlmConfig.from_hf(folder), 0
    with Checkpoint.open(folder, find_format=find_format) as checkpoint:
        rules = build_rules(config, None, checkpoint.quantized)
        check_rules(rules, checkpoint)
        for source in (source for rule in rules for source in rule.sources):
            if not isinstance(source.linear, SegmentedLinear):
                continue
            view = checkpoint.quantized_view(source.name, source.linear, source.pieces[0])
            ((_, rows),) = view.quantized_chunks()
            meant, seen = floats[source.name].astype(np.float32), seen + 1
            if source.linear.scheme is None:
                np.testing.assert_array_equal(rows.dequantized(), meant)
                continue
            for part, columns in enumerate(np.split(meant, 2, axis=1)):
                scales = np.abs(columns).max(axis=1) / np.float32(127)
                np.testing.assert_allclose(rows.scales[:, part], scales, rtol=1e-6)
                half = rows.codes[:, 64 * part : 64 * part + 64]
                np.testing.assert_array_equal(half, np.rint(columns / scales[:, None]))
    assert seen == 4


def test_layers_in_parts_for_ranks_have_the_formats_arithmetic(
    fixtures: Path, tmp_path: Path
) -> None:
    """3.4e-2 of the tool's logits: it also rounds the sums that cards exchange to int8."""
    found, expected = _simulate("chatglm_w8a8_tp2", fixtures, tmp_path, is_simulated=True)
    assert relative_error(found, expected) < 4e-2


def test_layers_in_parts_for_ranks_run(fixtures: Path, tmp_path: Path) -> None:
    """As the formats' arithmetic has it; few activations are rounded the other way."""
    expected, _ = _simulate("chatglm_w8a8_tp2", fixtures, tmp_path)
    prompt, _ = tool_logits(fixtures, "chatglm_w8a8_tp2")
    with LLM(tmp_path / "quantized", params_dtype="float32", max_model_len=64) as llm:
        assert len(llm.settings.rounded_columns) == 2
        error = relative_error(llm.logits(prompt), expected)
    assert error < 3e-2, error


@pytest.mark.parametrize("is_beside", [True, False])
def test_npy_files_run_as_the_same_weights_in_safetensors(
    is_beside: bool, fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the float weights, or by the guide's variables."""
    prompt, _ = tool_logits(fixtures, "chatglm_w8a8_numpy")
    expected = _logits(lay_out(fixtures, "chatglm_w8a8", tmp_path / "safetensors"), prompt)
    folder = lay_out(fixtures, "chatglm_w8a8_numpy", tmp_path / "npy")
    if not is_beside:
        for file in folder.glob("*.npy"):
            file.unlink()
        without = _logits(folder, prompt)
        monkeypatch.setenv("ENABLE_QUANT", "1")
        monkeypatch.setenv("QUANT_WEIGHT_PATH", str(fixtures / "chatglm_w8a8_numpy"))
        assert relative_error(without, expected) > 1e-2
    np.testing.assert_array_equal(_logits(folder, prompt), expected)


def _logits(folder: Path, prompt: list[int]) -> np.ndarray:
    with LLM(folder, params_dtype="float32", max_model_len=64) as llm:
        return llm.logits(prompt)
