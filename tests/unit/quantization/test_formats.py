"""Every format is read into the one form exactly, whole and in the shares of ranks."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import cut_blocks
from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantization_scheme import keep_integers
from mindformers_glm.core.quantized_linear import StoredScheme
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rule_checks import check_rules
from mindformers_glm.weights.rules import SourceTensor, build_rules, list_schemes
from mindformers_glm.weights.surplus import check_repeats
from tests import quantized_folders as folders
from tests.unit.quantization.float_folder import write_float_folder

_ALL = folders.WEIGHT_ONLY | folders.WITH_ACTIVATIONS | folders.CHATGLM


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Float folders by model_type."""
    root = tmp_path_factory.mktemp("float")
    return {
        kind: write_float_folder(root / kind, kind, num_attention_heads=8, head_dim=8)
        for kind in ("glm4", "chatglm")
    }


def _read(checkpoint: Checkpoint, source: SourceTensor) -> np.ndarray:
    assert source.linear is not None
    views = [
        checkpoint.quantized_view(source.name, source.linear, piece) for piece in source.pieces
    ]
    return np.concatenate([rows for view in views for _, rows in view.row_chunks()])


@pytest.mark.parametrize("name", _ALL)
@pytest.mark.parametrize("size", [1, 4, 8])  # 8: a query head each, a key-value head for four
def test_the_matrices_that_were_meant_are_read(
    name: str, size: int, sources: dict[str, Path], tmp_path: Path
) -> None:
    kind = "chatglm" if name in folders.CHATGLM else "glm4"
    meant = folders.write(sources[kind], tmp_path / "quantized", _ALL[name])
    config = GlmConfig.from_hf(tmp_path / "quantized")
    whole = build_rules(config)
    with Checkpoint.open(tmp_path / "quantized", find_format=find_format) as checkpoint:
        for rank in range(size):
            cuts = cut_blocks(config, TensorParallel(size, rank))
            rules = build_rules(config, cuts, checkpoint.quantized)
            check_rules(rules, checkpoint)
            check_repeats(rules, checkpoint)
            quantized = [s for rule in rules for s in rule.sources if s.linear is not None]
            assert {source.name for source in quantized} == set(meant)
            for source in quantized:
                taken = [
                    meant[source.name][piece.rows][:, piece.columns] for piece in source.pieces
                ]
                np.testing.assert_allclose(
                    _read(checkpoint, source), np.concatenate(taken), rtol=2e-7
                )
        schemes = list_schemes(rules)
    assert len(whole) == len(rules)
    kept = {keep_integers(found) is not None for layer, found in schemes.items() if ".l" in layer}
    assert kept == {_ALL[name].is_kept}


@pytest.mark.parametrize("name", ["slim-w8a8", "slim-w8a8-int64", "slim-w8a8s"])
def test_static_activations_are_read_whatever_their_types(
    name: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    meant = folders.write(sources["glm4"], tmp_path / "quantized", _ALL[name])
    config = GlmConfig.from_hf(tmp_path / "quantized")
    with Checkpoint.open(tmp_path / "quantized", find_format=find_format) as checkpoint:
        for rule in build_rules(config, None, checkpoint.quantized):
            for source in rule.sources:
                if source.linear is None:
                    continue
                view = checkpoint.quantized_view(source.name, source.linear, source.pieces[0])
                found = view.read_activation()
                assert found is not None
                assert (found.input_scale, found.input_offset) == (0.03125, 3.0)
                ((_, rows),) = view.quantized_chunks()
                np.testing.assert_array_equal(found.deq_scale, rows.scales[:, 0] * 0.03125)
                assert found.quant_bias.dtype == np.int32
                assert source.name in meant


def test_compressed_tensors_static_offset_is_an_integer_bias(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    folders.write(sources["glm4"], tmp_path / "quantized", _ALL["ct-w8a8-static"])
    config = GlmConfig.from_hf(tmp_path / "quantized")
    with Checkpoint.open(tmp_path / "quantized", find_format=find_format) as checkpoint:
        rules = build_rules(config, None, checkpoint.quantized)
        (source,) = next(r for r in rules if r.parameter.endswith("linear_proj.weight")).sources
        assert source.linear is not None
        view = checkpoint.quantized_view(source.name, source.linear, source.pieces[0])
        found = view.read_activation()
        assert found is not None
        (weight,) = [rows.dequantized() for _, rows in view.quantized_chunks()]
    x = np.random.default_rng(0).normal(size=(5, weight.shape[1])).astype(np.float32)
    x_int = np.clip(np.rint(x / found.input_scale + found.input_offset), -128, 127)
    expected = ((x_int - found.input_offset) * found.input_scale) @ weight.T
    (codes,) = [rows.codes for _, rows in view.quantized_chunks()]
    result = (x_int @ codes.T.astype(np.float64) + found.quant_bias) * found.deq_scale
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


def _first_scheme(folder: Path, layer: str) -> StoredScheme | None:
    config = GlmConfig.from_hf(folder)
    with Checkpoint.open(folder, find_format=find_format) as checkpoint:
        rules = build_rules(config, None, checkpoint.quantized)
        check_rules(rules, checkpoint)
        return list_schemes(rules)[f"decoder.layers.0.{layer}"][0]


@pytest.mark.parametrize("value", [-23.0, 8.0, 0.5])
def test_zero_points_beyond_the_codes_are_read_and_run_as_float(
    value: float, sources: dict[str, Path], tmp_path: Path
) -> None:
    """msModelSlim has them where all weights of a group have one sign."""
    case = _ALL["slim-w4a16-groups-asymmetric"]
    folders.write(sources["glm4"], tmp_path / "quantized", case)
    name = "model.layers.0.mlp.down_proj.weight_offset"
    (file,) = (tmp_path / "quantized").glob("*.safetensors")
    stored = load_file(file)
    stored[name][-1, -1] = value
    save_file(stored, file)
    found = _first_scheme(tmp_path / "quantized", "mlp.linear_fc2")
    assert found is not None
    assert found.has_far_zeros
    assert keep_integers([found]) is None
    other = _first_scheme(tmp_path / "quantized", "self_attention.linear_proj")
    assert keep_integers([other]) is not None


def test_columns_of_uneven_groups_run_as_float(sources: dict[str, Path], tmp_path: Path) -> None:
    folders.write(sources["glm4"], tmp_path / "quantized", _ALL["gptq-v1-reordered"])
    file = tmp_path / "quantized" / "model.safetensors"
    stored = load_file(file)
    order = stored["model.layers.0.mlp.down_proj.g_idx"]
    order[np.argmax(order == 0)] = 1
    save_file(stored, file)
    found = _first_scheme(tmp_path / "quantized", "mlp.linear_fc2")
    assert found == StoredScheme(4, folders.GROUP, is_reordered=True)
    assert keep_integers([found]) is None


def test_quantized_and_float_layers_lie_side_by_side(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    case = folders.WEIGHT_ONLY["gptq-v1"]
    meant = folders.write(sources["glm4"], tmp_path / "quantized", case)
    tensors = {
        name: value
        for name, value in load_file(tmp_path / "quantized" / "model.safetensors").items()
        if not name.startswith("model.layers.0.mlp.down_proj")
    }
    name = "model.layers.0.mlp.down_proj.weight"
    save_file(tensors | {name: meant[name]}, tmp_path / "quantized" / "model.safetensors")
    config = GlmConfig.from_hf(tmp_path / "quantized")
    with Checkpoint.open(tmp_path / "quantized", find_format=find_format) as checkpoint:
        rules = build_rules(config, None, checkpoint.quantized)
        check_rules(rules, checkpoint)
        assert list_schemes(rules)["decoder.layers.0.mlp.linear_fc2"] == (None,)


@pytest.mark.parametrize("name", folders.WEIGHT_ONLY | folders.WITH_ACTIVATIONS)
def test_any_folder_that_is_read_may_stand_beside_a_float_one(
    name: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    place = tmp_path / "quantized"
    folders.write(sources["glm4"], place, _ALL[name])
    with Checkpoint.open(
        sources["glm4"], find_format=find_format, quantized_folder=place
    ) as checkpoint:
        assert checkpoint.quantized is not None
        check_rules(build_rules(GlmConfig.from_hf(place), None, checkpoint.quantized), checkpoint)


def test_a_quantized_folder_does_not_run_by_another_one(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    own, place = tmp_path / "own", tmp_path / "other"
    folders.write(sources["glm4"], own, _ALL["gptq-v1"])
    folders.write(sources["glm4"], place, _ALL["slim-w8a8"])
    with pytest.raises(CheckpointError, match="own is quantized itself"):
        Checkpoint.open(own, find_format=find_format, quantized_folder=place)
    with Checkpoint.open(own, find_format=find_format, quantized_folder=own) as checkpoint:
        assert checkpoint.quantized is not None
    (own / "model.safetensors").unlink()  # no weights, nothing that would be replaced
    Checkpoint.open(own, find_format=find_format, quantized_folder=place).close()
