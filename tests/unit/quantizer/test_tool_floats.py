"""Floats of msModelSlim's calibration: PyTorch's own bits."""

import numpy as np
import pytest

from mindformers_glm.quantizer.tool_floats import norm_as_the_tool, sum_rows, swiglu_as_the_tool

torch = pytest.importorskip("torch")
_WIDTHS = [8, 31, 100, 128, 513, 1000, 1536, 4096, 4100, 5120, 13696, 40000]


def _draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape[-1]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("width", _WIDTHS)
def test_sums_have_the_bits_of_pytorchs(width: int) -> None:
    values = np.square(_draw(9, width))
    np.testing.assert_array_equal(sum_rows(values), torch.from_numpy(values).sum(-1).numpy())


@pytest.mark.parametrize("width", [128, 4096])
def test_norms_have_the_bits_of_hugging_faces(width: int) -> None:
    x, weight = _draw(5, width), _draw(width)
    inputs = torch.from_numpy(x)
    variance = inputs.pow(2).mean(-1, keepdim=True)
    expected = torch.from_numpy(weight) * (inputs * torch.rsqrt(variance + 1e-5))
    np.testing.assert_array_equal(norm_as_the_tool(x, weight, 1e-5), expected.numpy())


def test_swiglu_has_the_bits_of_pytorchs() -> None:
    gate, up = 4 * _draw(64, 512), _draw(64, 513)[:, :512]
    found = swiglu_as_the_tool(gate, up)
    expected = torch.nn.functional.silu(torch.from_numpy(gate)).numpy() * up
    np.testing.assert_array_equal(found, expected)
    wide = np.array([[-1e4, -110, -90, 90, 110, 1e4, 0]], np.float32)
    expected = torch.nn.functional.silu(torch.from_numpy(wide)).numpy()
    np.testing.assert_array_equal(swiglu_as_the_tool(wide, np.ones_like(wide)), expected)
