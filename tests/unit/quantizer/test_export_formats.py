"""Formats against what their tools wrote, and the rules by which other programs read them.

Rules are told in our words from facts about mindformers 1.7.0, vLLM-Ascend (2026) and
compressed-tensors 0.9; Hugging Face with compressed-tensors 0.9.4 and 0.12.2 gave the logits of our
dequantized weights exactly, for W4A16 in groups and W8A16.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.core.quantized_linear import QuantizedRows
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.quantizer.export.layout import ExportSettings
from mindformers_glm.quantizer.export.write_folder import write_folder
from mindformers_glm.quantizer.result import LayerResult, QuantizedModule
from mindformers_glm.weights.checkpoint import Checkpoint
from tests.unit.quantization.float_folder import write_float_folder
from tests.unit.quantizer.rounded_layers import finish_layer, group_by_layer, round_layers
from tests.unit.quantizer.tool_layers import read_layers

_CT = ExportSettings("compressed-tensors")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_float_folder(tmp_path_factory.mktemp("source") / "float", "glm4")


def _write(
    source: Path, output: Path, results: Iterable[LayerResult], settings: ExportSettings
) -> dict[str, np.ndarray]:
    with Checkpoint.open(source) as checkpoint:
        write_folder(checkpoint, results, output, settings)
    (file,) = output.glob("*.safetensors")
    return load_file(file)


def _config(folder: Path) -> dict[str, object]:
    return dict(json.loads((folder / "config.json").read_text())["quantization_config"])


@pytest.mark.parametrize("layout", ["gptq", "awq"])
def test_words_are_those_of_the_tools_converters(
    layout: str, shared_fixtures: Path, tmp_path: Path
) -> None:
    folder = shared_fixtures / "msmodelslim"
    results = read_layers(folder / "glm4_float", folder / "glm4_w4a16_g64")
    found = _write(folder / "glm4_float", tmp_path / "out", results, ExportSettings(layout))
    expected = load_file(folder / f"glm4_{layout}_from_ms" / "res.safetensors")
    assert set(expected) == {name for name in found if not name.endswith("g_idx")}
    for name in expected:
        if name.endswith(("qweight", "qzeros")):
            np.testing.assert_array_equal(found[name], expected[name], name)
        elif name.endswith(".scales"):
            np.testing.assert_array_equal(found[name], expected[name].astype(np.float16), name)


@pytest.mark.parametrize(
    ("name", "label"), [("ct_glm4_w4a16_gptq", "W4A16"), ("ct_glm4_w8a8_int8", "W8A8_DYNAMIC")]
)
def test_what_llm_compressor_wrote_is_written_again(
    name: str, label: str, shared_fixtures: Path, tmp_path: Path
) -> None:
    folder = shared_fixtures / "msmodelslim"
    results = list(_read_again(folder / name, label))
    found = _write(folder / "glm4_float", tmp_path / "out", results, replace(_CT, has_float32=True))
    expected = load_file(folder / name / "model.safetensors")
    assert found.keys() == expected.keys()
    for tensor, values in expected.items():
        assert found[tensor].dtype == values.dtype, tensor
        np.testing.assert_array_equal(found[tensor], values, tensor)
    assert _config(tmp_path / "out") == _config(folder / name)


def _read_again(folder: Path, label: str) -> Iterator[LayerResult]:
    """By our reader, which was compared with the tool's own logits."""
    with Checkpoint.open(folder, find_format=find_format) as checkpoint:
        assert checkpoint.quantized is not None
        tensors = load_file(folder / "model.safetensors")
        for names in group_by_layer(tensors):
            modules = []
            for stem in dict.fromkeys(name.rpartition(".")[0] for name in names):
                if f"{stem}.weight_scale" not in tensors:
                    continue
                rows = len(tensors[f"{stem}.weight_scale"])
                packed = tensors.get(f"{stem}.weight_packed")
                columns = (
                    tensors[f"{stem}.weight"].shape[1] if packed is None else packed.shape[1] * 8
                )
                linear = checkpoint.quantized.linear(stem, (rows, columns))
                assert linear is not None
                stored = {name: checkpoint.array(name) for name in linear.tensors}
                read = linear.read(stored, range(rows), range(columns))
                bits, size = linear.scheme.weight_bits, linear.scheme.group_size  # type: ignore[union-attr]
                bias = tensors.get(f"{stem}.bias")
                modules.append(QuantizedModule(stem, label, bits, size, read, bias))
            taken = tuple(module.name for module in modules)
            rest = [name for name in names if name.rpartition(".")[0] not in taken]
            yield finish_layer(rest, tensors, tuple(modules))


def _reorder(layer: LayerResult, seed: int) -> LayerResult:
    """Each module with its columns in groups that lie anywhere, as act-order leaves them."""
    rng = np.random.default_rng(seed)
    modules = []
    for module in layer.modules:
        order = rng.permutation(module.rows.codes.shape[1]) // 32
        rows = QuantizedRows(module.rows.codes, module.rows.scales, None, order)
        modules.append(replace(module, rows=rows))
    return replace(layer, modules=tuple(modules))


@pytest.mark.parametrize("layout", ["gptq", "compressed-tensors"])
def test_groups_that_lie_anywhere_are_named(layout: str, source: Path, tmp_path: Path) -> None:
    results = [_reorder(layer, 0) for layer in round_layers(source, "W4A16", 32)]
    _write(source, tmp_path / "out", results, ExportSettings(layout))
    with Checkpoint.open(tmp_path / "out", find_format=find_format) as written:
        assert written.quantized is not None
        for module in (module for layer in results for module in layer.modules):
            shape = module.rows.codes.shape
            linear = written.quantized.linear(module.name, (shape[0], shape[1]))
            assert linear is not None
            assert linear.scheme is not None
            assert linear.scheme.is_reordered
            stored = {name: written.array(name) for name in linear.tensors}
            read = linear.read(stored, range(shape[0]), range(shape[1]))
            np.testing.assert_array_equal(read.groups, module.rows.groups)
            np.testing.assert_array_equal(read.codes, module.rows.codes)


@pytest.mark.parametrize("layout", ["msmodelslim", "awq"])
def test_formats_without_an_order_refuse_one(layout: str, source: Path, tmp_path: Path) -> None:
    results = [_reorder(layer, 0) for layer in round_layers(source, "W4A16", 32)]
    with pytest.raises(UnsupportedError, match="take --format"):
        _write(source, tmp_path / "out", results, ExportSettings(layout))


def _mix(source: Path) -> list[LayerResult]:
    """The first layer of 8 bits, the second of 4 in groups."""
    eight, four = round_layers(source, "W8A16"), round_layers(source, "W4A16", 32)
    return [next(eight), list(four)[1]]


@pytest.mark.parametrize("layout", ["msmodelslim", "gptq", "compressed-tensors"])
def test_layers_may_have_different_bits(layout: str, source: Path, tmp_path: Path) -> None:
    results = _mix(source)
    _write(source, tmp_path / "out", results, ExportSettings(layout))
    with Checkpoint.open(tmp_path / "out", find_format=find_format) as written:
        assert written.quantized is not None
        for module in (module for layer in results for module in layer.modules):
            shape = module.rows.codes.shape
            linear = written.quantized.linear(module.name, (shape[0], shape[1]))
            assert linear is not None
            assert linear.scheme is not None
            assert (linear.scheme.weight_bits, linear.scheme.group_size) == (
                module.weight_bits,
                module.group_size,
            )
            stored = {name: written.array(name) for name in linear.tensors}
            read = linear.read(stored, range(shape[0]), range(shape[1]))
            np.testing.assert_array_equal(read.codes, module.rows.codes)


def test_awq_refuses_layers_of_different_bits(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="8 bits"):
        _write(source, tmp_path / "out", _mix(source), ExportSettings("awq"))


# What mindformers makes of a description; others are a KeyError there.
_MINDFORMERS = {"FLOAT", "W8A8", "W8A8_DYNAMIC", "W4A8_DYNAMIC"}


@pytest.mark.parametrize("label", ["W8A8", "W8A8_DYNAMIC"])
@pytest.mark.parametrize("keys", [None, {}], ids=["new", "old"])
def test_mindformers_finds_one_description_of_types_it_knows(
    label: str, keys: dict[str, object] | None, source: Path, tmp_path: Path
) -> None:
    settings = ExportSettings(mindie_keys=keys)
    found = _write(source, tmp_path / "out", round_layers(source, label), settings)
    named = re.compile("quantization_description|quant_model_description")
    (file,) = [f for f in (tmp_path / "out").glob("*.json") if named.search(f.name)]
    types = json.loads(file.read_text())
    tensors = {name: kind for name, kind in types.items() if "." in name}
    assert set(tensors.values()) <= _MINDFORMERS
    assert tensors.keys() == found.keys()


def _expected_of_vllm_ascend(label: str, shape: tuple[int, int]) -> dict[str, tuple[object, ...]]:
    """Parameters of a linear there: name -> dtype, shape."""
    rows, columns = shape
    by_row = {"weight_scale": ("float32", rows, 1), "weight_offset": ("float32", rows, 1)}
    whole = {"weight": ("int8", rows, columns)}
    static = {
        "input_scale": ("float32", 1),
        "input_offset": ("float32", 1),
        "quant_bias": ("int32", rows),
        "deq_scale": ("int64", rows),  # of a float16 model
    }
    groups = ("float32", rows, columns // 32)
    return {
        "W8A8": whole | by_row | static,
        "W8A8_MIX": whole | by_row | static,
        "W8A8_DYNAMIC": whole | by_row,
        "W8A16": whole | by_row,
        "W4A16": {
            "weight": ("int8", rows // 2, columns),
            "weight_scale": groups,
            "weight_offset": groups,
        },
        "W4A8_DYNAMIC": {
            "weight": ("int8", rows // 2, columns),
            **by_row,
            "weight_scale_second": groups,
            "weight_offset_second": ("int64", rows, columns // 32),
        },
    }[label]


@pytest.mark.parametrize(
    "label", ["W8A8", "W8A8_MIX", "W8A8_DYNAMIC", "W8A16", "W4A16", "W4A8_DYNAMIC"]
)
def test_vllm_ascend_finds_its_parameters(label: str, source: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    half.mkdir()
    raw = json.loads((source / "config.json").read_text()) | {"torch_dtype": "float16"}
    (half / "config.json").write_text(json.dumps(raw))
    (half / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    group_size = 32 if label.startswith("W4") else None
    results = list(round_layers(half, label, group_size))
    found = _write(half, tmp_path / "out", results, ExportSettings())
    types = json.loads((tmp_path / "out/quant_model_description.json").read_text())
    assert types["version"] == "1.0.0"
    assert types.get("group_size") == group_size
    for module in (module for layer in results for module in layer.modules):
        shape = module.rows.codes.shape
        expected = _expected_of_vllm_ascend(label, (shape[0], shape[1]))
        if label == "W4A8_DYNAMIC":
            ranks = 16 if module.name.endswith("o_proj") else 1
            expected["scale_bias"] = ("float32", shape[0], ranks)
        own = {
            name.removeprefix(f"{module.name}."): (value.dtype.name, *value.shape)
            for name, value in found.items()
            if name.startswith(f"{module.name}.") and not name.endswith(".bias")
        }
        assert own == expected
        assert types[f"{module.name}.weight"] == label
    for layer in (0, 1):  # one type for what a fused layer there is made of
        attention = f"model.layers.{layer}.self_attn"
        assert len({types[f"{attention}.{part}_proj.weight"] for part in "qkv"}) == 1


def test_bias_of_int4_is_eight_times_the_weights_sums(source: Path, tmp_path: Path) -> None:
    """A card takes nibbles as 0 to 15: 8 for each weight of a column part is put back by it."""
    results = list(round_layers(source, "W4A8_DYNAMIC", 32))
    found = _write(source, tmp_path / "out", results, ExportSettings())
    for module in (module for layer in results for module in layer.modules):
        weight = module.rows.codes.astype(np.float64)
        weight *= module.rows.scales[:, module.rows.groups]
        stored = found[f"{module.name}.scale_bias"]
        sums = weight.reshape(len(weight), stored.shape[1], -1).sum(axis=2)
        np.testing.assert_allclose(stored, 8 * sums, rtol=1e-4, atol=1e-4)


def test_compressed_tensors_unpack_by_their_rules(source: Path, tmp_path: Path) -> None:
    """(word >> 4 i & 15) - 8, cut to weight_shape; every linear is quantized or ignored by name."""
    results = list(round_layers(source, "W4A16", 32))
    found = _write(source, tmp_path / "out", results, _CT)
    config = _config(tmp_path / "out")
    assert config["quant_method"] == "compressed-tensors"
    assert config["format"] == "pack-quantized"
    ignored = config["ignore"]
    assert isinstance(ignored, list)
    assert "lm_head" in ignored
    for module in (module for layer in results for module in layer.modules):
        assert module.name not in ignored
        words = found[f"{module.name}.weight_packed"].view(np.uint32)
        values = np.stack([words >> np.uint32(4 * i) & np.uint32(15) for i in range(8)], axis=2)
        shape = tuple(found[f"{module.name}.weight_shape"])
        codes = values.reshape(len(words), -1)[:, : shape[1]].astype(np.int64) - 8
        assert shape == module.rows.codes.shape
        np.testing.assert_array_equal(codes, module.rows.codes)


def test_float_modules_are_named_to_gptq_and_awq(source: Path, tmp_path: Path) -> None:
    results = list(round_layers(source, "W4A16", 32))
    _write(source, tmp_path / "gptq", results, ExportSettings("gptq"))
    dynamic = _config(tmp_path / "gptq")["dynamic"]
    assert isinstance(dynamic, dict)
    down = "model.layers.1.mlp.down_proj"
    matching = [pattern for pattern in dynamic if re.match(pattern.removeprefix("-:"), down)]
    assert matching == [rf"-:^{re.escape(down)}$"]
    _write(source, tmp_path / "awq", results, ExportSettings("awq"))
    floats = _config(tmp_path / "awq")["modules_to_not_convert"]
    assert floats == ["model.layers.0.mlp.down_proj", down, "lm_head"]
