"""Quantized folders that cannot be meant: one sentence each, before anything runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import CheckpointError, GlmError, UnsupportedError
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rule_checks import check_rules
from mindformers_glm.weights.rules import build_rules
from mindformers_glm.weights.surplus import check_repeats
from tests import part_folders
from tests import quantized_folders as folders
from tests.unit.quantization.float_folder import write_float_folder

_ALL = folders.WEIGHT_ONLY | folders.WITH_ACTIVATIONS
_LAYER = "model.layers.1.mlp.down_proj"
_DESCRIPTION = "quant_model_description.json"
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_float_folder(tmp_path_factory.mktemp("float") / "glm4", "glm4")


def read_all(folder: Path) -> None:
    """What loading does, up to the memory of the network."""
    config = GlmConfig.from_hf(folder)
    with Checkpoint.open(folder, find_format=find_format) as checkpoint:
        rules = build_rules(config, None, checkpoint.quantized)
        check_rules(rules, checkpoint)
        check_repeats(rules, checkpoint)
        for rule in rules:
            for source in rule.sources:
                if source.linear is None:
                    continue
                view = checkpoint.quantized_view(source.name, source.linear, source.pieces[0])
                view.read_activations()
                for _ in view.quantized_chunks():
                    pass


def change_tensor(name: str, change: Callable[[np.ndarray], np.ndarray | None]) -> Change:
    """Replace a tensor of one layer; None: remove it."""

    def run(folder: Path) -> None:
        (file,) = folder.glob("*.safetensors")
        tensors = load_file(file)
        full = name if name.startswith("model.") else f"{_LAYER}.{name}"
        changed = change(tensors.pop(full).copy())
        save_file(tensors if changed is None else tensors | {full: changed}, file)

    return run


def change_json(name: str, change: Callable[[dict[str, Any]], object]) -> Change:
    """Change what a JSON file holds."""

    def run(folder: Path) -> None:
        raw = json.loads((folder / name).read_text())
        change(raw)
        (folder / name).write_text(json.dumps(raw))

    return run


def cut_off(folder: Path) -> None:
    file = folder / _DESCRIPTION
    file.write_bytes(file.read_bytes()[:-100])


def set_first(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array.reshape(-1)[0] = value
        return array

    return change


def _quantization(**changes: Any) -> Change:
    return change_json("config.json", lambda raw: raw["quantization_config"].update(changes))


def _ct_weights(**changes: Any) -> Change:
    def change(raw: dict[str, Any]) -> None:
        raw["quantization_config"]["config_groups"]["group_0"]["weights"].update(changes)

    return change_json("config.json", change)


def _ct_inputs(**changes: Any) -> Change:
    def change(raw: dict[str, Any]) -> None:
        group = raw["quantization_config"]["config_groups"]["group_0"]
        group["input_activations"] = group["input_activations"] | changes

    return change_json("config.json", change)


def _state(**changes: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Change what bitsandbytes says of a layer."""

    def change(array: np.ndarray) -> np.ndarray:
        raw = json.loads(array.tobytes()) | changes
        return np.frombuffer(json.dumps(raw).encode(), np.uint8)

    return change


def _remove_description(folder: Path) -> None:
    (file,) = folder.glob("quant_model_description*.json")
    file.unlink()


def _lose_weight_scale(folder: Path) -> None:
    change_tensor("weight_scale", lambda _: None)(folder)
    change_json(_DESCRIPTION, lambda raw: raw.pop(f"{_LAYER}.weight_scale"))(folder)


BAD: dict[str, tuple[str, Change, str]] = {
    "truncated description": ("slim-w8a16", cut_off, "is not valid JSON"),
    "description names a tensor that is not there": (
        "slim-w8a16",
        change_json(_DESCRIPTION, lambda raw: raw.update({"model.x.weight": "W8A16"})),
        "names 'model.x.weight', which is not in the folder",
    ),
    "description lacks a tensor": (
        "slim-w8a16",
        change_json(_DESCRIPTION, lambda raw: raw.pop(f"{_LAYER}.weight_scale")),
        "does not name 'model.layers.1.mlp.down_proj.weight_scale'",
    ),
    "unknown type": (
        "slim-w8a16",
        change_json(_DESCRIPTION, lambda raw: raw.update({f"{_LAYER}.weight": "W3A3"})),
        "is W3A3 by quant_model_description.json, which is not one of W8A8",
    ),
    "compressed sparse": (
        "slim-w8a16",
        change_json(_DESCRIPTION, lambda raw: raw.update({f"{_LAYER}.weight": "W8A8SC"})),
        "take the W8A8S folder",
    ),
    "quantize contradicts": (
        "slim-w8a16",
        change_json("config.json", lambda raw: raw.update(quantize="w8a8")),
        "says quantize 'w8a8' and quant_model_description.json says W8A16",
    ),
    "quantize without a description": (
        "slim-old-w4a16",
        _remove_description,
        "has no quant_model_description*.json",
    ),
    "GPTQ without its settings": (
        "gptq-v1",
        change_json("config.json", lambda raw: raw.pop("quantization_config")),
        "has no quantization_config, and there is no quantize_config.json or quant_config.json",
    ),
    "compressed-tensors without its settings": (
        "ct-w4a16",
        change_json("config.json", lambda raw: raw.pop("quantization_config")),
        "has no quantization_config",
    ),
    "bitsandbytes without its settings": (
        "bnb-int8",
        change_json("config.json", lambda raw: raw.pop("quantization_config")),
        "has no quantization_config",
    ),
    "no description": (
        "slim-w8a16",
        _remove_description,
        "has no quant_model_description*.json",
    ),
    "missing scale": (
        "gptq-v1",
        change_tensor("scales", lambda _: None),
        "1 missing: model.layers.1.mlp",
    ),
    "an order that was lost": (
        "gptq-v1-reordered",
        change_tensor("g_idx", lambda _: None),
        "1 missing: model.layers.1.mlp.down_proj.g_idx",
    ),
    "no order of GPTQ though there should be one": (
        "gptq-v2-reordered-asymmetric",
        change_tensor("g_idx", lambda _: None),
        "1 missing: model.layers.1.mlp.down_proj.g_idx",
    ),
    "desc_act as text": ("gptq-v1", _quantization(desc_act="x"), "desc_act is 'x'"),
    "no zero point of asymmetric inputs": (
        "ct-w8a8-static",
        change_tensor("input_zero_point", lambda _: None),
        "1 missing: model.layers.1.mlp.down_proj.input_zero_point",
    ),
    "an offset before the second scales": (
        "slim-w4a8-dynamic",
        change_tensor("weight_offset", set_first(1)),
        "down_proj.weight_offset is not zero",
    ),
    "a NaN offset before the second scales": (
        "slim-w4a8-dynamic",
        change_tensor("weight_offset", set_first(np.nan)),
        "down_proj.weight_offset holds zero points that are not numbers",
    ),
    "group does not divide": ("gptq-v1", _quantization(group_size=40), "groups of 40 do not"),
    "group of slim does not divide": (
        "slim-w4a16-groups",
        change_json(_DESCRIPTION, lambda raw: raw.update(group_size=7)),
        "groups of 7 do not",
    ),
    "int8 groups do not divide": (
        "slim-old-w8a16-groups-asymmetric",
        change_tensor("weight_scale", lambda array: array[:, :2].repeat(4, axis=1)[:, :7]),
        "groups of 13 do not",
    ),
    "int8 groups of another size": (
        "slim-w8a16-groups",
        change_json(_DESCRIPTION, lambda raw: raw.update(group_size=16)),
        "q_proj.weight_scale is [64, 2], expected [64, 4]",
    ),
    "int8 groups without their offsets": (
        "slim-w8a16-groups",
        change_tensor("weight_offset", lambda array: array[:, :1].copy()),
        "down_proj.weight_offset is [64, 1], expected [64, 3]",
    ),
    "scales without an axis of too few rows": (
        "slim-w8a16-flat-scales",
        change_tensor("weight_scale", lambda array: array[1:].copy()),
        "down_proj.weight_scale is [63], expected [64, 1]",
    ),
    "one of the scales of a W8A8 layer": (
        "slim-w8a8",
        _lose_weight_scale,
        "1 missing: model.layers.1.mlp.down_proj.weight_scale",
    ),
    "a fraction for an offset of inputs": (
        "slim-w8a8-of-a-card",
        change_tensor("input_offset", set_first(0.5)),
        "down_proj.input_offset holds 0.5, expected a whole number",
    ),
    "an infinite scale of inputs": (
        "slim-w8a8-of-a-card",
        change_tensor("input_scale", set_first(np.inf)),
        "not a positive number",
    ),
    "wrong type": (
        "slim-w8a16",
        change_tensor("weight", lambda array: array.astype(np.int16)),
        "down_proj.weight is int16, not int8",
    ),
    "wrong shape": (
        "awq",
        change_tensor("qweight", lambda array: array[:-1].copy()),
        "qweight is [95, 8], exp",
    ),
    "g_idx out of range": (
        "gptq-v1-reordered",
        change_tensor("g_idx", set_first(3)),
        "names group 3",
    ),
    "negative g_idx": (
        "gptq-v1-reordered",
        change_tensor("g_idx", set_first(-1)),
        "names group -1",
    ),
    "weight_g_idx out of range": (
        "ct-w4a16-actorder",
        change_tensor("weight_g_idx", set_first(99)),
        "names group 99",
    ),
    "NaN scale": ("slim-w8a16", change_tensor("weight_scale", set_first(np.nan)), "not a positive"),
    "zero scale": ("gptq-v1", change_tensor("scales", set_first(0)), "not a positive number"),
    "negative scale": ("ct-w4a16", change_tensor("weight_scale", set_first(-1)), "not a positive"),
    "infinite scale": ("awq", change_tensor("scales", set_first(np.inf)), "not a positive number"),
    "zero input scale": ("slim-w8a8", change_tensor("input_scale", set_first(0)), "not a positive"),
    "NaN offset": ("slim-w8a16", change_tensor("weight_offset", set_first(np.nan)), "zero points"),
    "int4 out of range": (
        "slim-old-w4a16",
        change_tensor("weight", set_first(9)),
        "more than int4",
    ),
    "another model's shape": (
        "ct-w4a16",
        change_tensor("weight_shape", set_first(1)),
        "weight_shape is [1, 96]",
    ),
    "three bits": ("gptq-v1", _quantization(bits=3), "bits are 3, expected 2, 4 or 8"),
    "group size as text": ("gptq-v1", _quantization(group_size="x"), "group_size is 'x'"),
    "AWQ gemv": ("awq", _quantization(version="gemv"), "has the layout 'gemv', expected gemm"),
    "AWQ of another storage": ("awq", _quantization(backend="llm-awq"), "backend 'llm-awq'"),
    "marlin": ("gptq-v1", _quantization(is_marlin_format=True), "is_marlin_format True"),
    "marlin by name": ("gptq-v1", _quantization(checkpoint_format="marlin"), "layout 'marlin'"),
    "a format by another name": ("gptq-v1", _quantization(format="bitblas"), "layout 'bitblas'"),
    "a version that is none": (
        "gptq-v2-reordered-asymmetric",
        _quantization(checkpoint_format=False),
        "layout 'false', expected gptq or gptq_v2",
    ),
    "words of bytes": ("gptq-v1", _quantization(pack_dtype="int8"), "pack_dtype 'int8'"),
    "rotated": ("gptq-v1", _quantization(rotation="hadamard"), "has rotation 'hadamard'"),
    "a low-rank correction": ("gptq-v1", _quantization(adapter={"rank": 8}), "has adapter {'r"),
    "AutoRound": ("gptq-v1", _quantization(quant_method="auto-round"), "format auto_gptq or"),
    "no order though there should be one": (
        "ct-w4a16",
        _ct_weights(actorder="group"),
        "model.layers.0.mlp.gate_up_proj.weight_g_idx and 7 more",
    ),
    "weights that are quantized later": ("ct-w4a16", _ct_weights(dynamic=True), "while they are l"),
    "4-bit activations": ("ct-w8a8-dynamic", _ct_inputs(num_bits=4), "4-bit 'int' activations"),
    "activations by group": (
        "ct-w8a8-dynamic",
        _ct_inputs(strategy="group"),
        "dynamic True by 'group'",
    ),
    "local activations": ("ct-w8a8-dynamic", _ct_inputs(dynamic="local"), "dynamic 'local'"),
    "static by channel": ("ct-w8a8-static", _ct_inputs(strategy="channel"), "False by 'channel'"),
    "asymmetric dynamic": (
        "ct-w8a8-dynamic",
        _ct_inputs(symmetric=False),
        "asymmetric dynamic activations",
    ),
    "asymmetric weights beside static activations": (
        "ct-w8a8-static",
        _ct_weights(symmetric=False),
        "static activations with scales of groups or zero points",
    ),
    "int8 by the name of int4": (
        "ct-w8a8-dynamic",
        _ct_weights(num_bits=4),
        "holds more than int4, which the folder says it is",
    ),
    "zero points of a symmetric layer": (
        "ct-w4a16-asymmetric",
        _ct_weights(symmetric=True),
        "is a zero point of a symmetric layer that is not zero",
    ),
    "bitsandbytes of nothing": (
        "gptq-v1",
        _quantization(quant_method="bitsandbytes"),
        "no tensor is quantized by it",
    ),
    "bytes in another type": (
        "bnb-nf4",
        _quantization(bnb_4bit_quant_storage="bfloat16"),
        "bnb_4bit_quant_storage 'bfloat16'",
    ),
    "no SCB": ("bnb-int8", change_tensor("SCB", lambda _: None), "1 missing: model.layers.1.mlp"),
    "NaN SCB": ("bnb-int8", change_tensor("SCB", set_first(np.nan)), "not a positive number"),
    "zero SCB of a row": (
        "bnb-int8",
        change_tensor("SCB", lambda array: array * 0),
        "not a positive number",
    ),
    "columns of another order": (
        "bnb-int8",
        change_tensor("weight_format", lambda array: array + np.uint8(2)),
        "weight_format is 2",
    ),
    "no state": (
        "bnb-nf4",
        change_tensor("weight.quant_state.bitsandbytes__nf4", lambda _: None),
        "has 0 tensors weight.quant_state",
    ),
    "a state that is no JSON": (
        "bnb-nf4",
        change_tensor("weight.quant_state.bitsandbytes__nf4", lambda array: array[:-5].copy()),
        "is not what bitsandbytes writes",
    ),
    "a state of another shape": (
        "bnb-nf4",
        change_tensor("weight.quant_state.bitsandbytes__nf4", _state(shape=[64, 64])),
        "says shape [64, 64]",
    ),
    "a state of no blocks": (
        "bnb-nf4",
        change_tensor("weight.quant_state.bitsandbytes__nf4", _state(blocksize=0)),
        "in blocks of 0",
    ),
    "an infinite offset": (
        "bnb-nf4-nested",
        change_tensor("weight.quant_state.bitsandbytes__nf4", _state(nested_offset=1e999)),
        "with offset inf",
    ),
    "blocks of another size": (
        "bnb-nf4",
        change_tensor("weight.quant_state.bitsandbytes__nf4", _state(blocksize=32)),
        "absmax is [96], expected [192]",
    ),
    "NaN absmax": (
        "bnb-nf4",
        change_tensor("weight.absmax", set_first(np.nan)),
        "absmax holds what is no number",
    ),
    "NaN nested absmax": (
        "bnb-nf4-nested",
        change_tensor("weight.nested_absmax", set_first(np.nan)),
        "nested_absmax holds what is no number",
    ),
    "a map of zeros": (
        "bnb-nf4",
        change_tensor("weight.quant_map", lambda array: array * 0),
        "quant_map has 0 for its largest value",
    ),
    "a nested map of zeros": (
        "bnb-nf4-nested",
        change_tensor("weight.nested_quant_map", lambda array: array * 0),
        "nested_quant_map has 0 for its largest value",
    ),
    "absmax beyond float32": (
        "bnb-nf4",
        change_tensor("weight.absmax", set_first(3e38)),
        "has a scale of 3e+38, with which weights are beyond float32",
    ),
    "a map beyond float32": (
        "bnb-nf4",
        change_tensor("weight.quant_map", lambda array: array * 3e38),
        "e+38 for its largest value, expected",
    ),
    "a scale beyond float32": (
        "bnb-int8",
        change_tensor("SCB", set_first(3e38)),
        "with which weights are beyond float32",
    ),
    "symmetric in words": ("ct-w4a16", _ct_weights(symmetric="x"), "with symmetric 'x' are not"),
    "symmetric inputs in words": (
        "ct-w8a8-dynamic",
        _ct_inputs(symmetric="false"),
        "input_activations with symmetric 'false' are not",
    ),
    "no method": ("gptq-v1", _quantization(quant_method=None), "has quant_method None"),
    "not an object": (
        "gptq-v1",
        change_json("config.json", lambda raw: raw.update(quantization_config="gptq")),
        "is 'gptq', expected an object",
    ),
    "no groups": ("ct-w4a16", _quantization(config_groups={}), "has no config_groups"),
    "FP8 in words": ("ct-w4a16", _ct_weights(type="float", num_bits=8), "in the format 'pack-q"),
    "bits as a number with a point": ("ct-w4a16", _ct_weights(num_bits=4.0), "4.0-bit 'int' weig"),
    "a pattern of nothing": ("ct-w4a16", _quantization(ignore=["re:("]), "no regular expression"),
    "an override of nothing": ("gptq-v1", _quantization(dynamic={"+:[": {}}), "no regular expre"),
    "a group of nothing": (
        "ct-w4a16",
        _quantization(config_groups={"group_0": {"weights": None}}),
        "not a scheme",
    ),
    "blocks": ("ct-w4a16", _ct_weights(strategy="block"), "'block' scales are not read"),
    "sparse": ("ct-w4a16", _quantization(sparsity_config={"format": "x"}), "has sparsity_config"),
    "NVFP4": (
        "ct-w4a16",
        _quantization(format="nvfp4-pack-quantized"),
        "the format 'nvfp4-pack-quantized'",
    ),
    "surplus tensor": (
        "gptq-v1",
        change_tensor("model.norm.weight", lambda array: None),
        "1 missing: model.norm.weight",
    ),
}


@pytest.mark.parametrize(("case", "change", "words"), BAD.values(), ids=BAD)
def test_a_folder_that_cannot_be_meant_is_one_sentence(
    case: str, change: Change, words: str, source: Path, tmp_path: Path
) -> None:
    folders.write(source, tmp_path / "q", _ALL[case])
    read_all(tmp_path / "q")
    change(tmp_path / "q")
    with pytest.raises(GlmError) as caught:
        read_all(tmp_path / "q")
    assert isinstance(caught.value, CheckpointError | UnsupportedError)
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_two_descriptions_are_refused(source: Path, tmp_path: Path) -> None:
    folders.write(source, tmp_path / "q", _ALL["slim-w8a16"])
    (tmp_path / "q" / "quant_model_description_w8a16.json").write_text("{}")
    with pytest.raises(CheckpointError, match="several descriptions"):
        read_all(tmp_path / "q")


@pytest.mark.parametrize(
    "change",
    [_quantization(static_groups=True), _quantization(desc_act=False)],
    ids=["groups of neighbours", "no desc_act"],
)
def test_groups_of_neighbours_need_no_order(change: Change, source: Path, tmp_path: Path) -> None:
    folders.write(source, tmp_path / "q", _ALL["gptq-v1-reordered"])
    change_tensor("g_idx", lambda _: None)(tmp_path / "q")
    change(tmp_path / "q")
    read_all(tmp_path / "q")


def test_layers_that_an_override_orders_need_one(source: Path, tmp_path: Path) -> None:
    folders.write(source, tmp_path / "q", _ALL["gptq-v1"])
    change_tensor("g_idx", lambda _: None)(tmp_path / "q")
    read_all(tmp_path / "q")
    _quantization(dynamic={r"model\.layers\.1\.": {"desc_act": True}})(tmp_path / "q")
    with pytest.raises(
        CheckpointError, match=r"1 missing: model\.layers\.1\.mlp\.down_proj\.g_idx"
    ):
        read_all(tmp_path / "q")


def test_an_unknown_quantized_tensor_is_named(source: Path, tmp_path: Path) -> None:
    folders.write(source, tmp_path / "q", _ALL["gptq-v1"])
    (file,) = (tmp_path / "q").glob("*.safetensors")
    save_file(load_file(file) | {f"{_LAYER}.codebooks": np.zeros(3, np.float32)}, file)
    with pytest.raises(CheckpointError, match=r"1 unknown: model\.layers\.1\.mlp\.down_proj\.code"):
        read_all(tmp_path / "q")


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_an_empty_bias_is_let_through(source: Path, tmp_path: Path, value: float) -> None:
    folders.write(source, tmp_path / "q", _ALL["gptq-v1"])
    (file,) = (tmp_path / "q").glob("*.safetensors")
    save_file(load_file(file) | {f"{_LAYER}.bias": np.full(64, value, np.float32)}, file)
    if value == 0:
        read_all(tmp_path / "q")
        return
    with pytest.raises(CheckpointError, match="is an empty bias that is not zero"):
        read_all(tmp_path / "q")


@pytest.mark.parametrize("name", ["model.norm", "model.layers.0.post_mlp_layernorm"])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_biases_of_norms_behind_branches_must_be_zero(
    name: str, source: Path, tmp_path: Path, value: float
) -> None:
    case = _ALL["slim-w8a16"]
    folders.write(source, tmp_path / "q", case)
    (file,) = (tmp_path / "q").glob("*.safetensors")
    bias = {f"{name}.bias": np.full(64, value, np.float32)}
    folders.save(load_file(file) | bias, tmp_path / "q", case)
    if value == 0:
        read_all(tmp_path / "q")
        return
    with pytest.raises(CheckpointError, match="is a bias of a norm that is not zero"):
        read_all(tmp_path / "q")


@pytest.mark.parametrize(
    ("bias", "copy", "words"),
    [
        (1.0, 1.0, ""),
        (0.0, 0.0, ""),
        (1.0, 2.0, "is not the same as"),
        (0.0, 2.0, "is not the same as"),
        (np.nan, np.nan, "is not the same as|what is no number"),
    ],
)
def test_biases_of_norms_under_two_names_must_be_the_same(
    bias: float, copy: float, words: str, source: Path, tmp_path: Path
) -> None:
    case, norm = _ALL["slim-old-w4a16"], "model.layers.0.input_layernorm"
    folders.write(source, tmp_path / "q", case)
    (file,) = (tmp_path / "q").glob("*.safetensors")
    biases = {
        f"{norm}.bias": np.full(64, bias, np.float32),
        f"{norm}.module.bias": np.full(64, copy, np.float32),
    }
    folders.save(load_file(file) | biases, tmp_path / "q", case)
    if not words:
        read_all(tmp_path / "q")
        return
    with pytest.raises(CheckpointError, match=words):
        read_all(tmp_path / "q")


@pytest.mark.parametrize("change", [0.0, 1.0])
def test_norms_under_two_names_must_be_the_same(
    source: Path, tmp_path: Path, change: float
) -> None:
    case = _ALL["slim-old-w4a16"]
    folders.write(source, tmp_path / "q", case)
    (file,) = (tmp_path / "q").glob("*.safetensors")
    tensors = load_file(file)
    norm = tensors["model.layers.0.input_layernorm.weight"]
    copies = {"model.layers.0.input_layernorm.module.weight": norm + np.float32(change)}
    folders.save(tensors | copies, tmp_path / "q", case)
    if change == 0:
        read_all(tmp_path / "q")
        return
    with pytest.raises(CheckpointError, match="is not the same as"):
        read_all(tmp_path / "q")


def _write_parts(folder: Path, source: Path) -> dict[str, np.ndarray]:
    part_folders.write(source, folder)
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


_PARTS = "model.layers.0.mlp.down_proj.tp_list"
_TORN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a part is missing": (
        lambda tensors: [tensors.pop(name) for name in list(tensors) if f"{_PARTS}.1" in name],
        "has parts of [64, 48], expected columns of [64, 96]",
    ),
    "a scale is missing": (
        lambda tensors: tensors.pop(f"{_PARTS}.1.deq_scale"),
        "missing: model.layers.0.mlp.down_proj.tp_list.1.deq_scale",
    ),
    "a part of another length": (
        lambda tensors: tensors.update({f"{_PARTS}.1.weight": np.zeros((64, 47), np.int8)}),
        "has parts of [64, 48], [64, 47]",
    ),
    "parts of rows": (
        lambda tensors: tensors.update(
            {f"{_PARTS}.{part}.weight": np.zeros((32, 96), np.int8) for part in range(2)}
        ),
        "has scales for each rank in its rows",
    ),
    "a NaN scale": (
        lambda tensors: tensors[f"{_PARTS}.0.input_scale"].fill(np.nan),
        "not a positive number",
    ),
}


@pytest.mark.parametrize(("change", "words"), _TORN.values(), ids=_TORN)
def test_parts_that_do_not_fit_are_one_sentence(
    change: Callable[[dict[str, Any]], object], words: str, source: Path, tmp_path: Path
) -> None:
    tensors = _write_parts(tmp_path / "q", source)
    read_all(tmp_path / "q")
    change(tensors)
    (file,) = (tmp_path / "q").glob("*.safetensors")
    save_file(tensors, file)
    change_json(
        _DESCRIPTION,
        lambda raw: [raw.pop(name) for name in list(raw) if "." in name and name not in tensors],
    )(tmp_path / "q")
    with pytest.raises(GlmError) as caught:
        read_all(tmp_path / "q")
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")


def test_parts_quantized_in_different_ways_are_refused(source: Path, tmp_path: Path) -> None:
    _write_parts(tmp_path / "q", source)
    kinds = {f"{_PARTS}.1.weight": "W8A16"}
    change_json(_DESCRIPTION, lambda raw: raw.update(kinds))(tmp_path / "q")
    with pytest.raises(CheckpointError, match="quantized in different ways"):
        read_all(tmp_path / "q")


@pytest.mark.parametrize("is_described", [True, False])
def test_what_a_card_compressed_is_refused_by_name(is_described: bool, tmp_path: Path) -> None:
    folder = write_float_folder(tmp_path / "q", "glm4")
    change_json("config.json", lambda raw: raw.update(quantize="w8a8sc"))(folder)
    if is_described:
        described = {"model_quant_type": "W8A8SC", "model.norm.weight": {"rank_0": [1]}}
        (folder / _DESCRIPTION).write_text(json.dumps(described))
    with pytest.raises(UnsupportedError, match="take the W8A8S folder"):
        read_all(folder)
    (folder / "model.safetensors").unlink()
    (folder / "part0-of-2").mkdir()
    with pytest.raises(UnsupportedError, match="take the W8A8S folder"):
        read_all(folder)


def _change_description(**changes: Any) -> Change:
    def run(folder: Path) -> None:
        description = json.loads((folder / _DESCRIPTION).read_text())
        (folder / _DESCRIPTION).write_text(json.dumps(description | changes))

    return run


_KEY_SCALE = "model.layers.1.self_attn.k_proj.kv_cache_scale"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_change_description(kv_cache_type="C4"), "has kv_cache_type 'C4', and this version reads"),
        (change_tensor(_KEY_SCALE, lambda _: None), f"names '{_KEY_SCALE}', which is not in"),
        (
            change_tensor(_KEY_SCALE, lambda x: x[1:]),
            f"{_KEY_SCALE} is \\[31\\], expected \\[32\\]",
        ),
        (change_tensor(_KEY_SCALE, lambda x: x.astype(np.int8)), f"{_KEY_SCALE} is int8"),
    ],
    ids=["type", "missing", "shape", "dtype"],
)
def test_scales_of_a_kv_cache_that_cannot_be_meant(
    source: Path, tmp_path: Path, change: Change, words: str
) -> None:
    folder = folders.write_kv_scales(source, tmp_path / "c8")
    change(folder)
    with pytest.raises(GlmError, match=words) as caught:
        read_all(folder)
    assert str(caught.value).count(". ") == 0


def test_a_description_of_c8_without_scales(source: Path, tmp_path: Path) -> None:
    folders.write(source, tmp_path / "c8", folders.WEIGHT_ONLY["slim-w8a16"])
    _change_description(kv_cache_type="C8")(tmp_path / "c8")
    with pytest.raises(CheckpointError, match=r"missing: .*kv_cache_scale"):
        read_all(tmp_path / "c8")
