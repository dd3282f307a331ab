"""Anti-outlier: layers compute the same afterwards, and scales are those of the tool."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.quantizer.smoothing.input_statistics import (
    InputStatistics,
    StatisticsCollector,
)
from mindformers_glm.quantizer.smoothing.outlier_channels import scale_outlier_channels
from mindformers_glm.quantizer.smoothing.scale_search import (
    search_magnitude_power,
    search_threshold,
)
from mindformers_glm.quantizer.smoothing.smooth import METHODS, smooth_layer, smoothed_inputs
from mindformers_glm.quantizer.weight_grid import WeightGrid
from mindformers_glm.weights.tensor_names import FC1, FC2, PROJ, QKV
from tests.conftest import relative_error
from tests.unit.quantizer.dialect_layers import DialectCheckpoint

INT4, INT8 = WeightGrid(4), WeightGrid(8)
# What msModelSlim 26.1.0's smooth_ln_fcs, os_ln_fcs, weight_aware (w_bit 4), iter_smooth and
# smooth_ln_fcs of m5 gave for `_tool_case`: run once on these very numbers.
TOOL_SCALES = {
    "m1": "3.26956 3.01371 15.8806 3.36409 3.92956 4.03971 3.28874 7.70324 2.6379 3.62451 3.31831 "
    "2.26096",
    "m2": "1 1 13.8684 1 1 1 1 7.14556 1 1 1 1",
    "m3": "0.577981 0.630631 2.0428 0.550012 0.614816 0.489523 0.534574 1.174 0.563635 0.642337 "
    "0.598219 0.576033",
    "m4": "2.38919 2.41407 47.4184 2.40396 3.2564 3.20592 2.4516 15.5159 2.40379 2.6239 2.86779 "
    "1.95208",
    "m5": "1 1 2.9446 1 1 1 1 1 1 1 1 1",
}

# The same of `_near_case`, where channels lie less far out.
NEAR_SCALES = {
    "m2": "1 3.69165 8.61627 1 2.70403 2.26766 1 3.56069 1 2.57268 1.38355 1.84877",
    "m5": "1 1 1.98093 1 1 1 1 1.09436 1 1 1 1",
}


@pytest.mark.parametrize("method", METHODS)
def test_smoothed_layers_compute_what_they_did(
    method: str, dialect_checkpoint: DialectCheckpoint, tmp_path: Path
) -> None:
    changed = {}
    for number, inputs in enumerate(dialect_checkpoint.inputs):
        # In float64 nothing hides an error; scales are float32 as ever.
        layer = {
            name: array.astype(np.float64)
            for name, array in dialect_checkpoint.layer(number).items()
        }
        before = {name: array.copy() for name, array in layer.items()}
        result = smooth_layer(method, layer, inputs, dialect_checkpoint.config, INT4)
        assert all(np.array_equal(layer[name], before[name]) for name in layer)
        assert any(not np.allclose(scales, 1) for scales in result.scales.values())
        prefix = f"{dialect_checkpoint.prefix}{number}."
        changed |= {prefix + name: array for name, array in result.tensors.items()}
    assert dialect_checkpoint.error_with(changed, tmp_path / "smoothed") < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_divided_by_the_scales_that_are_told(
    method: str, dialect_checkpoint: DialectCheckpoint
) -> None:
    inputs, layer = dialect_checkpoint.inputs[0], dialect_checkpoint.layer(0)
    result = smooth_layer(method, layer, inputs, dialect_checkpoint.config, INT4)
    assert set(result.scales) == set(smoothed_inputs(method))
    assert all(array.dtype == np.float32 for array in result.tensors.values())
    columns = {
        QKV: ("self_attn.q_proj.weight", "self_attention.query_key_value.weight"),
        PROJ: ("self_attn.o_proj.weight", "self_attention.dense.weight"),
        FC1: ("mlp.gate_up_proj.weight", "mlp.dense_h_to_4h.weight"),
        FC2: ("mlp.down_proj.weight", "mlp.dense_4h_to_h.weight"),
    }
    is_chatglm = dialect_checkpoint.dialect == "chatglm"
    for parameter, scales in result.scales.items():
        name = columns[parameter][is_chatglm]
        before, after = layer[name], result.tensors[name]
        # Rows differ where they are what another scale divides.
        rows = np.s_[:4]
        assert np.allclose(after[rows], before[rows] * scales, rtol=1e-6)


def test_norms_before_linears_get_biases_of_zeros(dialect_checkpoint: DialectCheckpoint) -> None:
    layer = dialect_checkpoint.layer(1)
    result = smooth_layer(
        "m1", layer, dialect_checkpoint.inputs[1], dialect_checkpoint.config, INT8
    )
    biases = {name for name in result.tensors if name.endswith("norm.bias")}
    assert biases == {"input_layernorm.bias", "post_attention_layernorm.bias"}
    assert not any(result.tensors[name].any() for name in biases)


def test_biases_of_norms_that_are_there_are_divided_with_the_weights(
    dialect_checkpoint: DialectCheckpoint,
) -> None:
    layer = dialect_checkpoint.layer(0)
    layer["input_layernorm.bias"] = np.linspace(-1, 1, 64, dtype=np.float32)
    result = smooth_layer(
        "m1", layer, dialect_checkpoint.inputs[0], dialect_checkpoint.config, INT8
    )
    expected = layer["input_layernorm.bias"] / result.scales[QKV]
    assert np.array_equal(result.tensors["input_layernorm.bias"], expected)


def test_gates_are_not_scaled_and_heads_of_one_group_are_scaled_alike(
    dialect_checkpoint: DialectCheckpoint,
) -> None:
    config, layer = dialect_checkpoint.config, dialect_checkpoint.layer(0)
    inputs = dict(dialect_checkpoint.inputs[0])
    result = smooth_layer("m4", layer, inputs, config, INT8)
    name = next(name for name in layer if name.endswith(("gate_up_proj.weight", "h_to_4h.weight")))
    gate = np.s_[: config.intermediate_size]
    assert np.allclose(result.tensors[name][gate], layer[name][gate] * result.scales[FC1])
    heads = result.scales[PROJ].reshape(config.num_key_value_heads, -1, config.head_dim)
    assert np.array_equal(heads[:, 0], heads[:, 1])


def _tool_case() -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(5)
    spread = np.ones(12, np.float32)
    spread[[2, 7]] = [25, -9]
    samples = [
        (rng.standard_normal((10, 12)) * spread + spread / 3).astype(np.float32) for _ in range(3)
    ]
    return samples, [rng.standard_normal((rows, 12)).astype(np.float32) / 8 for rows in (9, 5)]


def _near_case() -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(4)
    spread = np.ones(12, np.float32)
    spread[[2, 7, 9]] = [4, -3, 2]
    samples = [
        (rng.standard_normal((10, 12)) * spread + spread / 3).astype(np.float32) for _ in range(3)
    ]
    sizes = np.linspace(0.2, 3, 12)
    weights = [(rng.standard_normal((rows, 12)) / 8 * sizes).astype(np.float32) for rows in (9, 5)]
    return samples, weights


@pytest.mark.parametrize("method", NEAR_SCALES)
def test_outliers_that_lie_near_are_found_as_by_the_tool(method: str) -> None:
    samples, weights = _near_case()
    inputs = _collect(samples, num_kept_tokens=1)
    if method == "m2":
        found = search_threshold(inputs, weights)
    else:
        found = scale_outlier_channels(inputs.minimum, inputs.maximum)
    expected = np.array(NEAR_SCALES[method].split(), np.float32)
    assert np.allclose(found, expected, rtol=5e-6)


def _collect(samples: list[np.ndarray], **options: int) -> InputStatistics:
    collector = StatisticsCollector(**options)
    for sample in samples:
        collector.add(sample)
    return collector.finish()


@pytest.mark.parametrize("method", METHODS)
def test_scales_are_those_of_the_tool(method: str) -> None:
    samples, (query, key) = _tool_case()
    sizes = {"hidden_size": 12, "num_attention_heads": 1, "num_hidden_layers": 1}
    config = _config(**sizes, num_key_value_heads=1, head_dim=12, intermediate_size=12)
    rest = np.zeros((12, 12), np.float32)
    layer = {
        "self_attn.q_proj.weight": query,
        "self_attn.k_proj.weight": key,
        "self_attn.v_proj.weight": np.zeros((12, 12), np.float32),
        "self_attn.o_proj.weight": rest,
        "mlp.gate_up_proj.weight": np.zeros((24, 12), np.float32),
        "mlp.down_proj.weight": rest,
        "input_layernorm.weight": np.ones(12, np.float32),
        "post_attention_layernorm.weight": np.ones(12, np.float32),
    }
    inputs = dict.fromkeys((QKV, PROJ, FC1, FC2), _collect(samples, num_kept_tokens=1))
    result = smooth_layer(method, layer, inputs, config, INT4)
    expected = np.array(TOOL_SCALES[method].split(), np.float32)
    assert np.allclose(result.scales[QKV], expected, rtol=5e-6)


def _config(**changes: int) -> GlmConfig:
    raw = {
        "model_type": "glm",
        "architectures": ["GlmForCausalLM"],
        "attention_bias": False,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 20,
    }
    return GlmConfig.from_dict(raw | changes, "config.json")


def test_m5_scales_nothing_where_no_channel_lies_out() -> None:
    ends = np.linspace(1, 2, 64, dtype=np.float32)
    assert np.array_equal(scale_outlier_channels(-ends, ends), np.ones(64, np.float32))
    assert np.array_equal(scale_outlier_channels(ends * 0, ends), np.ones(64, np.float32))


def test_searched_scales_leave_the_least_error_of_all_powers() -> None:
    samples, weights = _tool_case()
    inputs = _collect(samples)
    found = search_magnitude_power(inputs.mean_abs, inputs.samples, weights, INT4)
    errors = []
    for power in np.arange(20) / 20:
        scales = inputs.mean_abs.astype(np.float64) ** power
        errors.append(
            sum(
                np.mean((inputs.samples @ (_round_rows(weight * scales) / scales - weight).T) ** 2)
                for weight in weights
            )
        )
    assert found.error == pytest.approx(min(errors), rel=1e-4)
    assert found.unscaled_error == pytest.approx(errors[0], rel=1e-4)
    assert found.error < found.unscaled_error


def _round_rows(weight: np.ndarray) -> np.ndarray:
    """To 4 bits, one scale a row: written out once more."""
    scale = np.abs(weight).max(axis=1, keepdims=True) / 7
    return np.clip(np.round(weight / scale), -8, 7) * scale


def test_statistics_are_those_of_all_samples() -> None:
    samples, _ = _tool_case()
    inputs = _collect(samples, num_kept_tokens=11, has_hessian=True)
    tokens = np.concatenate(samples)
    assert np.array_equal(inputs.maximum, tokens.max(axis=0))
    assert np.array_equal(inputs.minimum, tokens.min(axis=0))
    assert np.array_equal(inputs.abs_max, np.abs(tokens).max(axis=0))
    assert np.allclose(inputs.mean_abs, np.abs(tokens).mean(axis=0), rtol=1e-6)
    assert np.array_equal(inputs.samples, tokens[:20])
    assert inputs.hessian is not None
    assert relative_error(inputs.hessian, tokens.T.astype(np.float64) @ tokens) < 1e-6


def test_statistics_after_smoothing_are_those_of_the_divided_input() -> None:
    samples, _ = _tool_case()
    scales = np.linspace(0.5, 4, 12, dtype=np.float32)
    found = _collect(samples, has_hessian=True).divided_by(scales)
    expected = _collect([sample / scales for sample in samples], has_hessian=True)
    for name in ("maximum", "minimum", "mean_abs", "shifted_max", "samples", "hessian", "middle"):
        assert np.allclose(getattr(found, name), getattr(expected, name), rtol=1e-5), name


@pytest.mark.parametrize("layer", [0, 1])
def test_m1_equals_the_tools_file(shared_fixtures: Path, layer: int) -> None:
    source = _read(shared_fixtures / "msmodelslim" / "chatglm_float")
    given = _read(shared_fixtures / "msmodelslim" / "chatglm_w8a8_m1")
    prefix = f"transformer.encoder.layers.{layer}."
    norms = {
        "input_layernorm.": "self_attention.query_key_value.",
        "post_attention_layernorm.": "mlp.dense_h_to_4h.",
    }
    for norm, linear in norms.items():
        before, after = source[f"{prefix}{norm}weight"], given[f"{prefix}{norm}weight"]
        scales = before.astype(np.float32) / after
        codes, steps = given[f"{prefix}{linear}weight"], given[f"{prefix}{linear}weight_scale"]
        weight = source[f"{prefix}{linear}weight"].astype(np.float32)
        # s^2 * max|W| = max|X|: one input with this range gives the tool's scales.
        largest = scales**2 * np.abs(weight).max(axis=0)
        inputs = _collect([np.stack([largest, -largest])])
        tensors = {
            name.removeprefix(prefix): array.astype(np.float32)
            for name, array in source.items()
            if name.startswith(prefix)
        }
        config = GlmConfig.from_hf(shared_fixtures / "msmodelslim" / "chatglm_float")
        result = smooth_layer("m1", tensors, {QKV: inputs, FC1: inputs}, config, INT8)
        assert np.allclose(result.tensors[f"{norm}weight"], after, rtol=1e-6)
        assert not given[f"{prefix}{norm}bias"].any()
        rounded = INT8.codes(result.tensors[f"{linear}weight"], steps, None)
        assert np.mean(rounded == codes) > 0.9999


def _read(folder: Path) -> dict[str, np.ndarray]:
    (path,) = folder.glob("*.safetensors")
    return dict(load_file(path))
