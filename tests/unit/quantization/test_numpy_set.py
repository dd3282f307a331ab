"""The ChatGLM2 guide's .npy files: what is meant is read, beside float weights and by variables."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import cut_blocks
from mindformers_glm.core.errors import CheckpointError, GlmError, UnsupportedError
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rule_checks import check_rules
from mindformers_glm.weights.rules import build_rules
from mindformers_glm.weights.surplus import check_repeats
from tests import numpy_sets
from tests.unit.quantization.float_folder import write_float_folder

QKV = "transformer.encoder.layers.1.self_attention.query_key_value"
DENSE = "transformer.encoder.layers.0.self_attention.dense"
VARIANTS = {
    "newer": {},
    "newer, of a bfloat16 model": {"is_int64": False},
    "sparse": {"has_weight_scales": False},
    "older": {"has_fp_bias": True},
    "older, biases not corrected": {"has_fp_bias": True, "is_corrected": False},
    "older sparse": {"has_fp_bias": True, "has_weight_scales": False},
}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_float_folder(tmp_path / "float", "chatglm")


def read_all(
    folder: Path, quantized_folder: Path | None = None, parallel: TensorParallel | None = None
) -> dict[str, dict[str, np.ndarray]]:
    """By layer: codes, what multiplies them, and the static activation; stacked rows."""
    config, found = GlmConfig.from_hf(folder), {}
    parallel = parallel or TensorParallel()
    with Checkpoint.open(folder, parallel, find_format, quantized_folder) as checkpoint:
        rules = build_rules(config, cut_blocks(config, parallel), checkpoint.quantized)
        check_rules(rules, checkpoint)
        check_repeats(rules, checkpoint)
        for source in (source for rule in rules for source in rule.sources):
            if source.linear is None:
                if source.name.endswith((".weight", ".bias")):
                    checkpoint.view(source.name)
                continue
            views = [
                checkpoint.quantized_view(source.name, source.linear, p) for p in source.pieces
            ]
            rows = [part for view in views for _, part in view.quantized_chunks()]
            static = [view.read_activation() for view in views]
            found[source.name.removesuffix(".weight")] = {
                "codes": np.concatenate([part.codes for part in rows]),
                "scales": np.concatenate([part.scales for part in rows]),
                "input_scale": np.array([part.input_scale for part in static if part]),
                "input_offset": np.array([part.input_offset for part in static if part]),
                "quant_bias": np.concatenate([part.quant_bias for part in static if part]),
                "deq_scale": np.concatenate([part.deq_scale for part in static if part]),
            }
            assert all(part is not None and part.contains_bias for part in static)
    return found


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("is_beside", [True, False])
def test_what_was_meant_is_read(
    variant: str, is_beside: bool, source: Path, tmp_path: Path
) -> None:
    layers = numpy_sets.quantize(source)
    place = source if is_beside else tmp_path / "set"
    numpy_sets.write(source, place, layers, **VARIANTS[variant])
    found = read_all(source, None if is_beside else place)
    assert set(found) == set(layers)
    for name, layer in layers.items():
        np.testing.assert_array_equal(found[name]["codes"], layer.codes)
        np.testing.assert_array_equal(found[name]["quant_bias"], layer.quant_bias)
        np.testing.assert_array_equal(found[name]["deq_scale"], layer.deq_scale)
        np.testing.assert_allclose(found[name]["scales"], layer.weight_scale, rtol=2e-7)
        assert set(found[name]["input_scale"]) == set(layer.input_scale)
        assert set(found[name]["input_offset"]) == set(layer.input_offset)


def test_a_rank_takes_its_rows_and_columns(source: Path) -> None:
    layers = numpy_sets.quantize(source)
    numpy_sets.write(source, source, layers)
    ranks = [read_all(source, parallel=TensorParallel(2, rank)) for rank in range(2)]
    dense = np.concatenate([found[DENSE]["codes"] for found in ranks], axis=1)
    np.testing.assert_array_equal(dense, layers[DENSE].codes)
    name = DENSE.replace("self_attention.dense", "mlp.dense_h_to_4h")
    halves = [np.split(found[name]["codes"], 2) for found in ranks]
    rows = np.concatenate([half[part] for part in range(2) for half in halves])
    np.testing.assert_array_equal(rows, layers[name].codes)


def test_integers_of_a_lost_matrix_follow_anti_outlier(source: Path, tmp_path: Path) -> None:
    """The norm's weight divided by factors that the matrix's columns are multiplied by."""
    tensors, rng = load_file(source / "model.safetensors"), np.random.default_rng(7)
    smoothed = dict(tensors)
    for layer in range(2):
        prefix = f"transformer.encoder.layers.{layer}."
        factors = rng.uniform(0.5, 4, 64).astype(np.float32)
        smoothed[f"{prefix}input_layernorm.weight"] /= factors
        smoothed[f"{prefix}self_attention.query_key_value.weight"] *= factors
    shutil.copytree(source, tmp_path / "smoothed")
    save_file(smoothed, tmp_path / "smoothed" / "model.safetensors")
    layers = numpy_sets.quantize(tmp_path / "smoothed")
    numpy_sets.write(tmp_path / "smoothed", tmp_path / "set", layers)
    found = read_all(source, tmp_path / "set")
    for name, layer in layers.items():
        np.testing.assert_array_equal(found[name]["codes"], layer.codes)


def test_a_set_without_lost_matrices_needs_no_float_weights(source: Path, tmp_path: Path) -> None:
    layers = numpy_sets.quantize(source)
    (tmp_path / "alone").mkdir()
    shutil.copy(source / "config.json", tmp_path / "alone")
    numpy_sets.write(source, tmp_path / "alone", layers, has_fp_bias=True)
    assert set(read_all(tmp_path / "alone")) == set(layers)
    numpy_sets.write(source, tmp_path / "alone", layers)
    (tmp_path / "alone" / "fp_bias.npy").unlink()
    with pytest.raises(CheckpointError, match=r"has no matrix of .*0\.self_attention\.query_key_v"):
        read_all(tmp_path / "alone")


def test_folders_of_the_later_layouts_may_be_named_too(source: Path, tmp_path: Path) -> None:
    from tests import quantized_folders as folders

    folders.write(source, tmp_path / "q", folders.WITH_ACTIVATIONS["slim-w8a8"])
    assert len(read_all(source, tmp_path / "q")) == 8
    with pytest.raises(CheckpointError, match="holds no quantized weights"):
        read_all(source, source)


def test_the_tools_set_is_what_its_safetensors_are(shared_fixtures: Path, tmp_path: Path) -> None:
    fixtures = shared_fixtures / "msmodelslim"
    shutil.copytree(fixtures / "chatglm_float", tmp_path / "float", copy_function=shutil.copyfile)
    found = read_all(tmp_path / "float", fixtures / "chatglm_w8a8_numpy")
    expected = read_all(tmp_path / "float", fixtures / "chatglm_w8a8")
    assert set(found) == set(expected)
    for name, parts in expected.items():
        for part, values in parts.items():
            np.testing.assert_array_equal(found[name][part], values, err_msg=f"{name} {part}")


def test_whoever_can_use_float_weights_only_does_not_take_those_beside(source: Path) -> None:
    numpy_sets.write(source, source, numpy_sets.quantize(source))
    with pytest.raises(UnsupportedError, match=r"is quantized \(\.npy files\)"):
        Checkpoint.open(source)


def _change(stem: str, change: Callable[[np.ndarray], np.ndarray], layer: str = QKV):
    """Replace what a file has of a layer; None: leave it out."""

    def run(folder: Path) -> None:
        torch_tensors = np.load(folder / f"{stem}.npy", allow_pickle=True).item()
        values = {name: tensor.numpy().copy() for name, tensor in torch_tensors.items()}
        changed = change(values.pop(layer))
        numpy_sets.save(
            folder / f"{stem}.npy", values if changed is None else values | {layer: changed}
        )

    return run


def _first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        values.reshape(-1)[0] = value
        return values

    return change


def _cut_off(folder: Path) -> None:
    file = folder / "quant_weight.npy"
    file.write_bytes(file.read_bytes()[:-100])


def _run_code(folder: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (folder / "was-run",)

    np.save(folder / "deq_scale.npy", np.array({"x": Harmful()}, dtype=object))


def _quantize_key(folder: Path) -> None:
    raw = json.loads((folder / "config.json").read_text()) | {"quantize": "w8a16"}
    (folder / "config.json").write_text(json.dumps(raw))


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (_cut_off, "quant_weight.npy"),
    "code": (_run_code, "nothing of the file was run"),
    "a file is missing": (lambda folder: (folder / "quant_bias.npy").unlink(), "lacks quant_bias"),
    "no weights": (lambda folder: (folder / "quant_weight.npy").unlink(), "lacks quant_weight"),
    "one of two": (lambda folder: (folder / "weight_scale.npy").unlink(), "lacks weight_scale"),
    "a layer is missing": (_change("deq_scale", lambda _: None), "1 missing: transformer.encoder"),
    "wrong type": (_change("quant_bias", lambda v: v.astype(np.int64)), "is int64, not int32"),
    "wrong shape": (
        _change("input_scale", lambda _: np.ones(2, np.float32)),
        "is [2], expected [1",
    ),
    "NaN scale": (_change("weight_scale", _first(np.nan)), "not a positive number"),
    "zero scale": (_change("deq_scale", _first(0)), "not a positive number"),
    "NaN input scale": (_change("input_scale", _first(np.nan)), "not a positive number"),
    "NaN offset": (_change("input_offset", _first(np.nan)), "expected a whole number from -128"),
    "half an offset": (_change("input_offset", _first(0.5)), "expected a whole number from -128"),
    "another run's bias": (_change("quant_bias", _first(10**6)), "not all of one run"),
    "another type in config.json": (_quantize_key, "config.json says quantize 'w8a16'"),
}


@pytest.mark.parametrize(("change", "words"), BAD.values(), ids=BAD)
def test_a_set_that_cannot_be_meant_is_one_sentence(
    change: Callable[[Path], object], words: str, source: Path
) -> None:
    numpy_sets.write(source, source, numpy_sets.quantize(source))
    read_all(source)
    change(source)
    with pytest.raises(GlmError) as caught:
        read_all(source)
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
    assert not (source / "was-run").exists()
