"""The quantizer's float layers against Hugging Face: hidden states, and inputs of each linear."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mindformers_glm.backends import make_float_operators
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.quantizer.float_layers import FloatNetwork
from mindformers_glm.quantizer.pipeline import quantize
from mindformers_glm.quantizer.recipe import AWQ, GPTQ, NEAREST, Recipe
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.tensor_names import FC1, FC2, PROJ, QKV
from tests.conftest import relative_error
from tests.model import hf_oracle
from tests.model.dialects import save_dialect
from tests.unit.tiny_config import TINY_CONFIG

DIALECTS = ["glm4", "glm", "chatglm"]
_MODULES = {
    QKV: "self_attn.k_proj",
    PROJ: "self_attn.o_proj",
    FC1: "mlp.gate_up_proj",
    FC2: "mlp.down_proj",
}
# One token, a block exactly full, a block and one more.
_LENS = (1, 32, 33)


@pytest.fixture(scope="module", params=DIALECTS)
def folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    return save_dialect(tmp_path_factory.mktemp("float_layers"), request.param)


def _samples() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 515, length).tolist() for length in _LENS]


def _see_hugging_face(folder: Path) -> tuple[list[np.ndarray], dict[tuple[int, str], np.ndarray]]:
    """The input of each layer and the output of the last, and those of linears; rows joined."""
    model = hf_oracle.load(folder)
    seen: dict[tuple[int, str], list[np.ndarray]] = {}
    hidden: dict[int, list[np.ndarray]] = {}

    def watch(key: Any, store: dict[Any, list[np.ndarray]]) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            store.setdefault(key, []).append(args[0][0].numpy().copy())

        return hook

    for number, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(watch(number, hidden))
        for parameter, name in _MODULES.items():
            layer.get_submodule(name).register_forward_pre_hook(watch((number, parameter), seen))
    model.model.norm.register_forward_pre_hook(watch(len(model.model.layers), hidden))
    with torch.no_grad():
        for sample in _samples():
            model(torch.tensor([sample]))
    joined = {key: np.concatenate(parts) for key, parts in seen.items()}
    return [np.concatenate(hidden[number]) for number in sorted(hidden)], joined


def test_layers_and_inputs_of_linears_are_hugging_faces(folders: tuple[Path, Path]) -> None:
    folder, source = folders
    expected, expected_inputs = _see_hugging_face(source)
    config = GlmConfig.from_hf(folder)
    seen: dict[tuple[int, str], np.ndarray] = {}
    with Checkpoint.open(folder) as checkpoint:
        network = FloatNetwork(config, checkpoint, _samples())
        hidden = network.embed()
        assert np.array_equal(hidden, expected[0])
        for number in range(config.num_hidden_layers):
            tensors = network.read(number)

            def see(parameter: str, x: np.ndarray, number: int = number) -> None:
                seen[number, parameter] = x.copy()

            hidden = network.run(tensors, hidden, network.multiply_floats(tensors, see))
            assert relative_error(hidden, expected[number + 1]) < 1e-5
    assert seen.keys() == expected_inputs.keys()
    for key, inputs in expected_inputs.items():
        assert relative_error(seen[key], inputs) < 1e-5, key


def test_rows_are_the_same_whatever_comes_with_them(folders: tuple[Path, Path]) -> None:
    folder, _ = folders
    config, samples = GlmConfig.from_hf(folder), _samples()

    def run(chosen: list[list[int]]) -> np.ndarray:
        with Checkpoint.open(folder) as checkpoint:
            network = FloatNetwork(config, checkpoint, chosen)
            tensors = network.read(0)
            multiply = network.multiply_floats(tensors, lambda *_: None)
            return network.run(tensors, network.embed(), multiply)

    together = run(samples)
    assert np.array_equal(together[:1], run(samples[:1]))
    assert np.array_equal(together[33:], run(samples[2:]))


def test_products_that_need_not_be_exact_are_nearly_so(
    isa: str, folders: tuple[Path, Path]
) -> None:
    folder, _ = folders
    config, samples, found, products = GlmConfig.from_hf(folder), _samples(), [], []
    with Checkpoint.open(folder) as checkpoint:
        for is_exact in (True, False):
            network = FloatNetwork(config, checkpoint, samples, is_exact)
            tensors = network.read(0)
            multiply = network.multiply_floats(tensors, lambda *_: None)
            found.append(network.run(tensors, network.embed(), multiply))
            products.append(multiply(QKV, network.embed())(slice(None)))
    assert relative_error(found[1], found[0]) < 3e-5  # 16 bits of each factor
    assert np.array_equal(*products) == (isa != "amx")


# These models have no outliers: AWQ has nothing to win, and little to lose.
@pytest.mark.parametrize(("rounding", "share"), [(GPTQ, 0.9), (AWQ, 1.05)])
def test_searches_leave_no_larger_errors_than_rounding_to_nearest(
    rounding: str, share: float, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, source = folders
    expected = _run_hugging_face(source, _more_samples())
    errors = []
    for method in (NEAREST, rounding):
        recipe = Recipe(weight_bits=4, group_size=32, rounding=method)
        found = _quantized_hidden(folder, recipe, tmp_path / method)
        errors.append(relative_error(found, expected))
    assert errors[1] < errors[0] * share, errors


def _more_samples() -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, 515, 64).tolist() for _ in range(6)]


def _run_hugging_face(folder: Path, samples: list[list[int]]) -> np.ndarray:
    """The input of the final norm."""
    model, found = hf_oracle.load(folder), []
    model.model.norm.register_forward_pre_hook(
        lambda _module, args: found.append(args[0][0].numpy().copy())
    )
    with torch.no_grad():
        for sample in samples:
            model(torch.tensor([sample]))
    return np.concatenate(found)


def _quantized_hidden(folder: Path, recipe: Recipe, work: Path) -> np.ndarray:
    """The same of what the results stand for, run by the float operators."""
    samples = _more_samples()
    with Checkpoint.open(folder) as checkpoint:
        network = FloatNetwork(GlmConfig.from_hf(folder), checkpoint, samples)
        hidden = network.embed()
        for result in quantize(checkpoint, recipe, samples, work):
            assert result.number is not None
            prefix = network.names.layer_prefix(result.number)
            tensors = {
                name.removeprefix(prefix): values for name, values in result.float_tensors.items()
            }
            for module in result.modules:
                name = module.name.removeprefix(prefix)
                tensors[f"{name}.weight"] = module.rows.dequantized()
                if module.bias is not None:
                    tensors[f"{name}.bias"] = module.bias
            multiply = network.multiply_floats(tensors, lambda *_: None)
            hidden = network.run(tensors, hidden, multiply)
    return hidden


def test_smoothed_layers_are_the_same_network(folders: tuple[Path, Path], tmp_path: Path) -> None:
    folder, source = folders
    expected = _run_hugging_face(source, _more_samples())
    errors = []
    for method in ("", "m4"):  # m4 folds into norms, rows of v and rows of up
        found = _quantized_hidden(folder, Recipe(anti_method=method), tmp_path / f"work{method}")
        errors.append(relative_error(found, expected))
    assert errors[1] < errors[0] * 1.5, errors  # int8 weights are what they differ by


def test_products_of_integers_are_exact(isa: str) -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(-127, 128, (70, 96)).astype(np.int8)
    x = rng.integers(-255, 256, (33, 96)).astype(np.float32)
    operators = make_float_operators(
        GlmConfig.from_dict(TINY_CONFIG, "a test"), [1], is_exact=False
    )
    product = operators.integer_matrix(codes).multiply(x)
    assert np.array_equal(product, x.astype(np.int64) @ codes.T.astype(np.int64)), isa
