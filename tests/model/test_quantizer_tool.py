"""The recipe msmodelslim on the sources of msModelSlim's own outputs: its integers and scales.

msModelSlim 26.1.0 on tiny random models; the data is not the project's. Weights depend on nothing
but themselves and are the tool's to the last bit. Ranges of activations come through the network
behind its own rounding: a sum in another order may let one activation be rounded the other way,
and everything behind it differs a little. Up to there, ranges are the tool's too. The tool itself,
run on another machine than made these files, is as far from them as the figures below
(docs/lab_notes.md), and within the last bit of ours.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.quantized_linear import DYNAMIC, STATIC
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.quantizer.export.layout import ExportSettings
from mindformers_glm.quantizer.export.write_folder import write_folder
from mindformers_glm.quantizer.pipeline import quantize
from mindformers_glm.quantizer.recipe import HISTOGRAM, Recipe
from mindformers_glm.quantizer.result import LayerResult, QuantizedModule
from mindformers_glm.weights.checkpoint import Checkpoint

# The name, our results, the tool's tensors.
Compared = tuple[str, list[LayerResult], dict[str, np.ndarray]]
_TYPES = "quant_model_description.json"
_W8A8 = Recipe(activation=STATIC)
_W8A8C8 = replace(_W8A8, act_method=HISTOGRAM, has_kv_scales=True)


@dataclass(frozen=True)
class Case:
    """One output of the tool.

    Attributes:
        range_error: of scales of activations, the largest relative difference in all layers; None:
            there are none.
        num_exact: modules from the first on whose scales are the tool's to the last bit or so.
        offset_error: the largest difference of offsets behind them.
    """

    recipe: Recipe
    range_error: float | None = None
    num_exact: int = 0
    offset_error: int = 0


CASES = {
    "glm4_w8a8": Case(_W8A8, 2.2e-4, 8),
    "glm4_w8a8_bf16": Case(_W8A8, 2.2e-4, 8),
    "glm_w8a8": Case(_W8A8, 5.1e-4, 4),
    "chatglm_w8a8": Case(_W8A8, 1e-9, 6),
    "chatglm_w8a8_m1": Case(replace(_W8A8, anti_method="m1"), 1.8e-5, 4),
    # A bin more or less of a histogram is a step, whatever has let one value change sides.
    "glm_w8a8c8": Case(_W8A8C8, 8e-2, 4, 6),
    "chatglm_w8a8c8": Case(_W8A8C8, 3e-7, 4),
    "glm4_w8a8_dynamic": Case(Recipe(activation=DYNAMIC)),
    "glm4_w8a16": Case(Recipe()),
    "glm4_w4a16_pc": Case(Recipe(weight_bits=4)),
    "glm4_w4a16_g64": Case(Recipe(weight_bits=4, group_size=64)),
    "glm4_w8a8s_lowbit": Case(replace(_W8A8, is_sparse=True), 2.7e-3, 5),
}
# Scales of an int8 cache: those of the first layer, of all layers. They are the float network's.
_KV_ERRORS = {"glm_w8a8c8": (4e-7, 2e-4), "chatglm_w8a8c8": (4e-7, 1.5e-6)}


@pytest.fixture(scope="module")
def fixtures(shared_fixtures: Path) -> Path:
    return shared_fixtures / "msmodelslim"


@pytest.fixture(scope="module", params=CASES)
def case(
    request: pytest.FixtureRequest, fixtures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Compared:
    """The name, what we make of its source, and the tool's tensors."""
    name = request.param
    (file,) = (fixtures / name).glob("*.safetensors")
    tool = load_file(file)
    source = fixtures / f"{name.split('_')[0]}_float"
    samples = np.load(fixtures / "calib_ids.npy").tolist()
    with Checkpoint.open(source) as checkpoint:
        kept = [
            entry.removesuffix(".weight")
            for entry in checkpoint.entries
            if ".layers." in entry and entry.endswith(".weight") and "norm" not in entry
            if tool[entry].dtype != np.int8
        ]
        recipe = replace(CASES[name].recipe, disable_names=frozenset(kept), is_msmodelslim=True)
        work = tmp_path_factory.mktemp("work") / name
        return name, list(quantize(checkpoint, recipe, samples, work)), tool


def _modules(results: list[LayerResult]) -> list[QuantizedModule]:
    return [module for result in results for module in result.modules]


def test_weights_are_the_tools_integers(case: Compared, fixtures: Path, tmp_path: Path) -> None:
    name, results, tool = case
    folder = tmp_path / name
    folder.mkdir()
    for file in (fixtures / name).iterdir():
        (folder / file.name).symlink_to(file)
    config = fixtures / f"{name.split('_')[0]}_float" / "config.json"
    (folder / "config.json").write_text(config.read_text())
    exact = not CASES[name].recipe.anti_method
    with Checkpoint.open(folder, find_format=find_format) as checkpoint:
        assert checkpoint.quantized is not None
        for module in _modules(results):
            shape = module.rows.codes.shape
            linear = checkpoint.quantized.linear(module.name, shape)
            assert linear is not None
            stored = {tensor: checkpoint.array(tensor) for tensor in linear.tensors}
            rows = linear.read(stored, range(shape[0]), range(shape[1]))
            np.testing.assert_array_equal(module.rows.codes, rows.codes)
            if f"{module.name}.weight_scale" not in tool:  # W8A8S
                continue
            if exact:
                np.testing.assert_array_equal(module.rows.scales, rows.scales)
            else:
                np.testing.assert_allclose(module.rows.scales, rows.scales, rtol=5e-7)
    label = json.loads(next(folder.glob("*description*.json")).read_text())
    assert {label[f"{module.name}.weight"] for module in _modules(results)} == {
        module.label for module in _modules(results)
    }


def test_scales_of_activations_are_the_tools(case: Compared) -> None:
    name, results, tool = case
    allowed = CASES[name].range_error
    if allowed is None:
        pytest.skip("no static activations")
    errors, offset_errors = [], []
    for module in _modules(results):
        assert module.static is not None
        expected = tool[f"{module.name}.input_scale"][0]
        errors.append(abs(module.static.scale / expected - 1))
        offset_errors.append(abs(module.static.offset - tool[f"{module.name}.input_offset"][0]))
    assert max(errors[: CASES[name].num_exact]) <= 2e-7, errors
    assert not any(offset_errors[: CASES[name].num_exact])
    assert max(errors) < allowed, errors
    assert max(offset_errors) <= CASES[name].offset_error


def test_everything_else_is_the_tools(case: Compared) -> None:
    name, results, tool = case
    found = {key: values for result in results for key, values in result.float_tensors.items()}
    layers = {key for key, values in tool.items() if ".layers." in key and values.dtype.kind == "f"}
    wanted = {key for key in layers if key.endswith((".weight", "norm.bias"))}
    # The tool gives every norm a bias of zeros where it has looked for outliers.
    assert {key for key in found if not key.endswith("norm.bias") or key in wanted} == wanted
    for key in wanted:
        tolerance = 5e-7 if CASES[name].recipe.anti_method else 0
        np.testing.assert_allclose(found[key], tool[key], rtol=tolerance)
    for module in _modules(results):
        if module.bias is not None:
            np.testing.assert_array_equal(module.bias, tool[f"{module.name}.bias"])


@pytest.mark.parametrize("case", _KV_ERRORS, indirect=True)
def test_scales_of_the_cache_are_the_tools(case: Compared) -> None:
    name, results, tool = case
    for result in results:
        assert result.kv_scales is not None
        for which, scale in (
            ("k", result.kv_scales.key_scale),
            ("v", result.kv_scales.value_scale),
        ):
            expected = tool[f"{result.kv_prefix}.{which}_proj.kv_cache_scale"]
            assert np.abs(scale / expected - 1).max() < _KV_ERRORS[name][min(result.number or 0, 1)]
        assert not result.kv_scales.key_offset.any()


def test_our_own_recipe_takes_scales_of_what_the_cache_holds(
    fixtures: Path, tmp_path: Path
) -> None:
    source = fixtures / "glm4_float"
    samples = np.load(fixtures / "calib_ids.npy").tolist()
    found = []
    for is_msmodelslim in (False, True):
        recipe = Recipe(has_kv_scales=True, is_msmodelslim=is_msmodelslim)
        with Checkpoint.open(source) as checkpoint:
            work = tmp_path / str(is_msmodelslim)
            found.append(next(iter(quantize(checkpoint, recipe, samples, work))).kv_scales)
    ours, tools = found
    assert ours is not None
    assert tools is not None
    config = GlmConfig.from_hf(source)
    heads = ours.key_scale.reshape(-1, config.head_dim)
    before = tools.key_scale.reshape(-1, config.head_dim)
    # Channels that are not rotated have the same range but for what W8A16 rounds.
    np.testing.assert_allclose(
        heads[:, config.rotary_dim :], before[:, config.rotary_dim :], rtol=0.02
    )
    assert np.abs(heads / before - 1)[:, : config.rotary_dim].max() > 0.02
    np.testing.assert_allclose(ours.value_scale, tools.value_scale, rtol=0.02)


def test_parts_for_ranks_are_the_tools(fixtures: Path, tmp_path: Path) -> None:
    """Every tensor and word of the description; twice, for the work folder has all of it, too."""
    folder = fixtures / "chatglm_w8a8_tp2"
    (file,) = folder.glob("*.safetensors")
    tool = load_file(file)
    samples = np.load(fixtures / "calib_ids.npy").tolist()
    down = [f"transformer.encoder.layers.{n}.mlp.dense_4h_to_h" for n in range(2)]
    recipe = replace(_W8A8, disable_names=frozenset(down), is_msmodelslim=True, num_ranks=2)
    recipe = replace(recipe, has_exchange_scales=True)
    for out in (tmp_path / "out", tmp_path / "again"):
        with Checkpoint.open(fixtures / "chatglm_float") as checkpoint:
            results = quantize(checkpoint, recipe, samples, tmp_path / "work")
            write_folder(checkpoint, results, out, ExportSettings(has_float32=True, num_ranks=2))
        described = (out / "quant_model_description.json").read_text()
        assert json.loads(described) == json.loads((folder / _TYPES).read_text())
        (made,) = out.glob("*.safetensors")
        found = load_file(made)
        assert found.keys() == tool.keys()
        for name, values in tool.items():
            assert found[name].dtype == values.dtype
            in_layer, kind = ".layers.1." not in name, name.split(".")[-1]
            if values.dtype == np.float32 and "_scale" in name:
                # Sums of floats have the tool's but for their last bits; behind the first layer
                # one activation is rounded the other way.
                tolerance = 1e-6 if in_layer or kind == "weight_scale" else 3e-2
                np.testing.assert_allclose(found[name], values, rtol=tolerance, err_msg=name)
            elif kind == "deq_scale":  # the bits of such a scale
                np.testing.assert_allclose(found[name], values, rtol=1e-6, err_msg=name)
            else:
                np.testing.assert_array_equal(found[name], values, err_msg=name)
