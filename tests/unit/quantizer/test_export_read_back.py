"""Every format that is written is read by our own readers, to the same integers and scales."""

from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.quantizer.export.layout import ExportSettings
from mindformers_glm.quantizer.export.write_folder import write_folder
from mindformers_glm.quantizer.result import QuantizedModule
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rule_checks import check_rules
from mindformers_glm.weights.rules import build_rules, resolve_attention_bias
from tests.unit.quantization.float_folder import write_float_folder
from tests.unit.quantizer.rounded_layers import round_layers

_MINDIE = {"w_bit": 8}
# Format: label, group size, symmetric.
_CASES = {
    "slim-w8a8": (ExportSettings(), "W8A8", None, True),
    "slim-w8a8s": (ExportSettings(), "W8A8S", None, True),
    "slim-mix": (ExportSettings(), "W8A8_MIX", None, True),
    "slim-dynamic": (ExportSettings(), "W8A8_DYNAMIC", None, True),
    "slim-w8a16-asym": (ExportSettings(), "W8A16", None, False),
    "slim-w4a16-rows": (ExportSettings(), "W4A16", None, True),
    "slim-w4a16-groups": (ExportSettings(), "W4A16", 32, False),
    "slim-w4a8": (ExportSettings(), "W4A8_DYNAMIC", 32, True),
    "slim-float32": (ExportSettings(has_float32=True), "W8A8", None, True),
    "slim-parts": (ExportSettings(part_bytes=20_000), "W8A8", None, True),
    "mindie-w8a8": (ExportSettings(mindie_keys=_MINDIE), "W8A8", None, True),
    "mindie-w4a16-rows": (ExportSettings(mindie_keys=_MINDIE), "W4A16", None, False),
    "mindie-w4a16-groups": (ExportSettings(mindie_keys=_MINDIE), "W4A16", 32, True),
    "ct-w8a8": (ExportSettings("compressed-tensors"), "W8A8", None, True),
    "ct-dynamic": (ExportSettings("compressed-tensors"), "W8A8_DYNAMIC", None, True),
    "ct-w4a8": (ExportSettings("compressed-tensors"), "W4A8_DYNAMIC", 32, True),
    "ct-w8a16": (ExportSettings("compressed-tensors"), "W8A16", None, True),
    "ct-w4a16": (ExportSettings("compressed-tensors"), "W4A16", 32, True),
    "ct-w4a16-asym": (ExportSettings("compressed-tensors"), "W4A16", 32, False),
    "ct-parts": (ExportSettings("compressed-tensors", part_bytes=20_000), "W4A16", 32, True),
    "gptq": (ExportSettings("gptq"), "W4A16", 32, True),
    "gptq-rows": (ExportSettings("gptq"), "W4A16", None, True),
    "gptq-w8a16-asym": (ExportSettings("gptq"), "W8A16", 32, False),
    "awq": (ExportSettings("awq"), "W4A16", 32, False),
    "awq-rows": (ExportSettings("awq"), "W4A16", None, True),
    "numpy": (ExportSettings("numpy"), "W8A8", None, True),
    "numpy-sparse": (ExportSettings("numpy"), "W8A8S", None, True),
}
_HALVES = ("gptq", "awq")  # formats whose scales are float16


@pytest.fixture(scope="module", params=["chatglm", "glm", "glm4"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_float_folder(tmp_path_factory.mktemp("source") / "float", request.param)


@pytest.mark.parametrize("case", _CASES)
def test_readers_give_the_same_integers(case: str, source: Path, tmp_path: Path) -> None:
    settings, label, group_size, is_symmetric = _CASES[case]
    output = tmp_path / "out"
    results = list(round_layers(source, label, group_size, is_symmetric))
    with Checkpoint.open(source) as checkpoint:
        write_folder(checkpoint, results, output, settings)
    is_set = settings.layout == "numpy"
    folder, beside = (source, output) if is_set else (output, None)
    with Checkpoint.open(folder, None, find_format, beside) as written:
        _check_rules(folder, written)
        assert written.quantized is not None
        for module in (module for result in results for module in result.modules):
            _compare(module, written, settings.layout)
        for result in results:
            for name, values in result.float_tensors.items():
                np.testing.assert_array_equal(written.array(name), values, name)


def _check_rules(folder: Path, written: Checkpoint) -> None:
    """That `predict` would take it: every tensor is known, and of the right shape and dtype."""
    config = resolve_attention_bias(GlmConfig.from_hf(folder), written)
    check_rules(build_rules(config, quantized=written.quantized), written)


def _compare(module: QuantizedModule, written: Checkpoint, layout: str) -> None:
    shape = module.rows.codes.shape
    assert written.quantized is not None
    linear = written.quantized.linear(module.name, (shape[0], shape[1]))
    assert linear is not None, module.name
    stored = {name: written.array(name) for name in linear.tensors}
    found = linear.read(stored, range(shape[0]), range(shape[1]))
    np.testing.assert_array_equal(found.codes, module.rows.codes, module.name)
    scales = module.rows.scales
    if layout in _HALVES:
        scales = scales.astype(np.float16).astype(np.float32)
    exact = module.label != "W8A8S"  # there the scale is a quotient
    np.testing.assert_allclose(found.scales, scales, rtol=0 if exact else 1e-6)
    zeros = np.zeros_like(scales) if module.rows.zeros is None else module.rows.zeros
    np.testing.assert_array_equal(zeros if found.zeros is not None else zeros * 0, zeros)
    if found.zeros is not None:
        np.testing.assert_array_equal(found.zeros, zeros)
    np.testing.assert_array_equal(found.groups, module.rows.groups)
    if module.bias is not None:
        np.testing.assert_array_equal(written.array(f"{module.name}.bias"), module.bias)
    _compare_activation(module, linear.read_activation(stored, range(shape[0])), layout)


def _compare_activation(module: QuantizedModule, found: object, layout: str) -> None:
    if module.static is None:
        assert found is None
        return
    codes, scales = module.rows.codes.astype(np.float64), module.rows.scales[:, 0]
    deq = np.float64(module.static.scale) * scales
    bias = 0 if module.bias is None or layout == "compressed-tensors" else module.bias / deq
    assert found.input_scale == module.static.scale  # type: ignore[attr-defined]
    assert found.input_offset == module.static.offset  # type: ignore[attr-defined]
    np.testing.assert_allclose(found.deq_scale, deq, rtol=1e-6)  # type: ignore[attr-defined]
    wanted = bias - np.float64(module.static.offset) * codes.sum(axis=1)
    error = np.abs(found.quant_bias - wanted)  # type: ignore[attr-defined]
    assert error.max() <= 0.51
