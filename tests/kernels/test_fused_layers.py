"""The linear layers in every format: loaded in chunks from several tensors, run in a graph."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

pytest.importorskip("mindspore")

import mindspore as ms
from mindspore import Tensor

from mindformers_glm.backends.cpu import fused_layers
from mindformers_glm.backends.cpu.program import Graph
from mindformers_glm.backends.cpu.trace import Value
from mindformers_glm.backends.cpu.weighted_module import WeightedModule
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.weights.tensor_view import TensorView
from tests.conftest import relative_error
from tests.kernels import reference

EPS = 1e-5
K, N = 200, 50  # neither is a multiple of a tile or of a group
FORMATS = [
    (None, None),
    ("w8a16", None),
    ("w8a8_dynamic", None),
    ("w4a16", 32),
    ("w4a16", None),
    ("w4a8_dynamic", 64),
]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindformers_glm.weights.tensor_view._CHUNK_BYTES", 7 * K * 4)


def _settings(name: str | None, group_size: int | None) -> RunnerSettings:
    return RunnerSettings.with_defaults(
        "float32", 64, quantization=name, quantization_group_size=group_size
    )


def _load(cell: WeightedModule, name: str, *tensors: np.ndarray) -> None:
    views = [TensorView("", "float32", tensor, lambda *_: None) for tensor in tensors]
    cell.weight_targets()[name].load(views)


def _run(layer: WeightedModule, x: np.ndarray) -> Tensor:
    num_rows = Value()
    value = Value(num_rows=num_rows)
    program = Graph({"x": value, "num_rows": num_rows}, layer(value))
    return program(Tensor(x), Tensor(np.int32([len(x)])))


def _multiply(x: np.ndarray, weight: np.ndarray, settings: RunnerSettings) -> np.ndarray:
    """What the reference makes of x W^T in the format of the settings."""
    scheme = settings.scheme_of("any")
    if scheme is None:
        return reference.linear(x, weight, len(x))
    group_size = scheme.group_size or 0
    integers, scales = reference.quantize_weight(weight, scheme.weight_bits, group_size)
    return reference.quantized_linear(
        x, integers, scales, len(x), None, scheme.activation_bits, group_size
    )


def _check(found: Tensor, expected: np.ndarray, settings: RunnerSettings) -> None:
    # Behind a norm, a value may land on the other side of a rounding boundary.
    tolerance = 2e-3 if (settings.quantization or "").endswith("a8_dynamic") else 2e-5
    assert relative_error(found.asnumpy(), expected) < tolerance


@pytest.fixture
def numbers(rng: np.random.Generator) -> Callable[..., np.ndarray]:
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("kind", FORMATS, ids=str)
def test_linear_multiplies_by_its_weight_in_every_format(
    kind: tuple[str | None, int | None], numbers: Callable[..., np.ndarray]
) -> None:
    settings = _settings(*kind)
    cell = fused_layers.Linear(K, N, settings=settings, name="output_layer")
    weight, x = numbers(N, K), numbers(3, K)
    _load(cell, "weight", weight)
    _check(_run(cell, x), _multiply(x, weight, settings), settings)


@pytest.mark.parametrize("kind", FORMATS, ids=str)
def test_norm_linear_stacks_its_tensors(
    kind: tuple[str | None, int | None], numbers: Callable[..., np.ndarray]
) -> None:
    settings = _settings(*kind)
    cell = fused_layers.NormLinear(
        K, N, has_bias=True, num_precise=N, eps=EPS, settings=settings, name="linear_qkv"
    )
    weight, norm, bias, x = numbers(N, K), numbers(K), numbers(N), numbers(3, K)
    _load(cell, "weight", weight[:30], weight[30:41], weight[41:])
    _load(cell, "layer_norm_weight", norm)
    _load(cell, "bias", bias)
    normed = reference.rms_norm(x, norm, EPS, 3)
    _check(_run(cell, x), _multiply(normed, weight, settings) + bias, settings)


@pytest.mark.parametrize("kind", FORMATS, ids=str)
def test_norm_gated_linear_takes_gate_and_up_one_after_the_other(
    kind: tuple[str | None, int | None], numbers: Callable[..., np.ndarray]
) -> None:
    settings = _settings(*kind)
    cell = fused_layers.NormGatedLinear(K, N, eps=EPS, settings=settings, name="linear_fc1")
    weight, norm, x = numbers(2 * N, K), numbers(K), numbers(3, K)
    _load(cell, "weight", weight[:N], weight[N:])
    _load(cell, "layer_norm_weight", norm)
    gate, up = np.split(_multiply(reference.rms_norm(x, norm, EPS, 3), weight, settings), 2, axis=1)
    _check(_run(cell, x), gate / (1 + np.exp(-gate)) * up, settings)


def test_layers_of_one_network_may_differ(
    numbers: Callable[..., np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    int4 = _settings("w4a16", None).scheme_of("any")
    monkeypatch.setattr(
        RunnerSettings,
        "scheme_of",
        lambda self, name: int4 if name.startswith("decoder.layers.1.") else None,
    )
    names = [f"decoder.layers.{layer}.mlp.linear_fc2" for layer in (0, 1, 10)]
    settings = _settings(None, None)
    layers: Sequence[WeightedModule] = [fused_layers.Linear(K, N, settings, name) for name in names]
    found = [sorted(layer.parameters_dict(recurse=False)) for layer in layers]
    assert found == [["weight"], ["weight", "weight_scale"], ["weight"]]


def test_programs_are_told_apart_where_mindspore_runs_them_one_by_one() -> None:
    ms.set_context(mode=ms.PYNATIVE_MODE)
    try:
        for width in (50, 49, 50):
            cell = fused_layers.Linear(
                K, width, settings=_settings(None, None), name="output_layer"
            )
            assert _run(cell, np.ones((3, K), np.float32)).shape == (3, width)
    finally:
        ms.set_context(mode=ms.GRAPH_MODE)
