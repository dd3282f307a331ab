"""Checkpoints that are quantized already on upstream's network, under the references.

What a card computes with them is written down in tests/model/stored_oracle.py, in NumPy between
Hugging Face's layers; test_quantized_fixtures.py compares it with the tools' own logits.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor
from safetensors.numpy import load_file, save_file

from mindformers_glm import LLM
from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from tests import quantized_folders as folders
from tests.ascend_contract.steps import KnownSequences, open_runner
from tests.conftest import relative_error
from tests.model import hf_oracle, stored_oracle
from tests.model.chatglm_layout import to_chatglm
from tests.model.test_quantized_fixtures import lay_out, tool_logits

ASCEND: dict[str, Any] = {"device_target": "Ascend", "device_options": {"mode": 1}}
FLOAT32 = {"params_dtype": "float32", "compute_dtype": "float32"}
STATIC_CALLS, DYNAMIC_CALLS = (
    ("QuantV2", "QuantBatchMatmul"),
    ("DynamicQuantExt", "QuantBatchMatmul"),
)
WEIGHT_ONLY_CALLS = ("WeightQuantBatchMatmul",)
# The bounds of issue 16; GLM and ChatGLM with outliers as test_quantized_fixtures.py has them.
OF_THE_TOOL = {
    "glm4_w8a8": 3e-3,
    "glm4_w8a8_bf16": 3e-3,
    "glm4_w8a8_safe_tensor": 3e-3,
    "glm4_w8a16": 1e-4,
    "glm4_w8a16_sharded": 1e-4,
    "glm4_w8a8s_lowbit": 1e-2,
    "chatglm_w8a8": 3e-2,
    "chatglm_w8a8_numpy": 3e-2,
    "glm_w8a8": 3e-2,
}
# The tools simulate other roundings of tokens than a card's (8.4e-3, 7.2e-3).
DYNAMIC_OF_THE_TOOL = {"glm4_w8a8_dynamic": 1e-2, "ct_glm4_w8a8_int8": 1e-2}
# Exact sums of integers, and float ones around them; one activation rounded the other way by the
# last bit of those makes 1e-3.
EXACT = 1e-4
CASES = {
    "slim-w8a8": STATIC_CALLS,
    "slim-w8a8-int64": STATIC_CALLS,
    "slim-w8a8s": STATIC_CALLS,
    "ct-w8a8-static": STATIC_CALLS,
    "slim-w8a8-dynamic": DYNAMIC_CALLS,
    "ct-w8a8-dynamic": DYNAMIC_CALLS,
    "slim-w8a16": WEIGHT_ONLY_CALLS,
    "slim-w8a16-asymmetric": WEIGHT_ONLY_CALLS,
    "ct-w8a16": WEIGHT_ONLY_CALLS,
    "gptq-int8-whole-rows": WEIGHT_ONLY_CALLS,
}
DIALECT_CASES = ("slim-w8a8", "slim-w8a8-dynamic", "slim-w8a16-asymmetric")
REFUSED = {
    "slim-w8a8-mix": "in W8A8_MIX",
    "slim-w4a8-dynamic": "in W4A8_DYNAMIC, groups of",
    "ct-w8a16-groups": "in W8A16, groups of",
    "slim-w4a16-groups": "in W4A16, groups of",
    "gptq-v1-reordered": "in W4A16, groups of .*, columns reordered",
    "gptq-int2": "W2A16",
    "ct-fp8": "FP8",
}


def write(tmp_path: Path, name: str, dialect: str = "glm4", **changes: Any) -> tuple[Path, Path]:
    """A generated quantized folder, and the float one it has the rest of, for Hugging Face."""
    model_type = "glm" if dialect == "chatglm" else dialect
    source = hf_oracle.save_random_checkpoint(tmp_path / "hf", model_type=model_type, **changes)
    as_stored = to_chatglm(source, tmp_path / "stored") if dialect == "chatglm" else source
    case = (folders.WEIGHT_ONLY | folders.CHATGLM | folders.WITH_ACTIVATIONS)[name]
    folders.write(as_stored, tmp_path / "quantized", case)
    return tmp_path / "quantized", source


def change_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize("name", OF_THE_TOOL | DYNAMIC_OF_THE_TOOL)
def test_the_tools_folders_have_its_logits(
    name: str, with_ascend: Counter[str], shared_fixtures: Path, tmp_path: Path
) -> None:
    fixtures = shared_fixtures / "msmodelslim"
    folder = lay_out(fixtures, name, tmp_path / "quantized")
    prompt, expected = tool_logits(fixtures, name)
    with LLM(folder, **ASCEND, **FLOAT32, max_model_len=64) as llm:
        error = relative_error(llm.logits(prompt), expected)
    assert error < (OF_THE_TOOL | DYNAMIC_OF_THE_TOOL)[name], error


@pytest.mark.parametrize("name", CASES)
def test_each_kind_of_step_has_the_logits_of_a_cards_arithmetic(
    name: str, calls: Counter[str], tmp_path: Path
) -> None:
    folder, source = write(tmp_path, name)
    runner = open_runner(folder, "float32")
    errors = KnownSequences(source, folder).errors(runner.execute)
    assert max(errors.values()) < EXACT, errors
    layers = 2 * 4 * len(errors)
    assert {name: n for name, n in calls.items() if "Quant" in name} == dict.fromkeys(
        CASES[name], layers
    )
    runner.close()


@pytest.mark.parametrize(
    ("dialect", "name"),
    [
        *((dialect, name) for dialect in ("glm", "chatglm") for name in DIALECT_CASES),
        ("chatglm", "chatglm-int8"),
    ],
)
def test_other_dialects_have_them_too(
    dialect: str, name: str, calls: Counter[str], tmp_path: Path
) -> None:
    folder, source = write(tmp_path, name, dialect)
    runner = open_runner(folder, "float32")
    errors = KnownSequences(source, folder).errors(runner.execute)
    assert max(errors.values()) < EXACT, errors


FLOAT16_CASES = ["slim-w8a8-int64", "ct-w8a8-static", "slim-w8a8-dynamic"]


@pytest.mark.parametrize("name", FLOAT16_CASES)
def test_a_layer_in_float16_has_numpys_products(
    name: str, calls: Counter[str], tmp_path: Path
) -> None:
    """Of the scale's bits in an int64 a card reads 19: at most 2^-10 less of each product."""
    folder, _ = write(tmp_path, name, attention_bias=True)
    runner = open_runner(folder, "float16")
    layer = runner.network.model.decoder.layers[1].self_attention.linear_qkv
    x = np.random.default_rng(5).standard_normal((9, layer.input_size)).astype(np.float16)
    found = layer(Tensor(x)).asnumpy()
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    expected = np.concatenate([_product(x, tensors, part) for part in "qkv"], axis=1)
    assert found.dtype == np.float16
    assert relative_error(found.astype(np.float32), expected) < 2e-3


def _product(x: np.ndarray, tensors: dict[str, np.ndarray], part: str) -> np.ndarray:
    """x [rows, columns] by the formula of each format, in float64."""
    prefix = f"model.layers.1.self_attn.{part}_proj."
    own = {
        name.removeprefix(prefix): tensor.astype(np.float64)
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
    codes, wide = own["weight"], x.astype(np.float64)
    if "input_scale" not in own:
        step = np.abs(wide).max(axis=1, keepdims=True) / 127
        return np.rint(wide / step) @ codes.T * step * own["weight_scale"].T + own["bias"]
    reciprocal = (1 / own["input_scale"]).astype(np.float16).astype(np.float64)
    offset = own.get("input_offset", own.get("input_zero_point"))
    x_int = np.clip(np.rint(wide * reciprocal + offset), -128, 127)
    if "quant_bias" not in own:
        scale = own["input_scale"] * own["weight_scale"].T
        return (x_int - offset) @ codes.T * scale + own["bias"]
    bits = tensors[f"{prefix}deq_scale"].astype(np.uint32)
    return (x_int @ codes.T + own["quant_bias"]) * bits.view(np.float32)


@pytest.mark.parametrize("name", FLOAT16_CASES)
def test_float16_has_them_within_its_rounding(
    name: str, calls: Counter[str], tmp_path: Path
) -> None:
    """Rounded activations take other integers here and there; these matrices are large ones."""
    folder, source = write(tmp_path, name)
    runner = open_runner(folder, "float16")
    errors = KnownSequences(source, folder).errors(runner.execute)
    assert max(errors.values()) < 5e-2, errors


def test_a_float_bias_that_quant_bias_contains_is_not_added(
    calls: Counter[str], tmp_path: Path
) -> None:
    """msModelSlim's quant_bias has it, compressed-tensors' product needs it."""

    def enlarge(tensors: dict[str, np.ndarray]) -> None:
        for name in tensors:
            if name.endswith("_proj.bias"):
                tensors[name] = tensors[name] + np.float32(3)

    for name, is_added in (("slim-w8a8", False), ("ct-w8a8-static", True)):
        root = tmp_path / name
        folder, source = write(root, name, attention_bias=True)
        known = KnownSequences(source, folder)
        change_tensors(folder, enlarge)
        runner = open_runner(folder, "float32")
        errors = known.errors(runner.execute)
        assert (max(errors.values()) > 1e-2) == is_added, errors


def test_layers_that_the_tool_left_float_run_as_float(calls: Counter[str], tmp_path: Path) -> None:
    folder, source = write(tmp_path, "slim-w8a8")
    lost = ("model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj")
    floats = load_file(source / "model.safetensors")
    file = folder / "quant_model_description.json"
    types = json.loads(file.read_text())

    def make_float(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if name.startswith(lost)]:
            del tensors[name], types[name]
        for layer in lost:
            tensors[f"{layer}.weight"] = floats[f"{layer}.weight"]
            types[f"{layer}.weight"] = "FLOAT"

    change_tensors(folder, make_float)
    file.write_text(json.dumps(types))
    runner = open_runner(folder, "float32")
    errors = KnownSequences(source, folder).errors(runner.execute)
    assert max(errors.values()) < EXACT, errors
    assert calls["QuantV2"] == 6 * len(errors)


@pytest.mark.parametrize("name", REFUSED)
def test_other_schemes_are_refused_by_name(
    name: str, with_ascend: Counter[str], tmp_path: Path
) -> None:
    folder, _ = write(tmp_path, name)
    with pytest.raises(UnsupportedError, match=REFUSED[name]) as caught:
        LLM(folder, **ASCEND, **FLOAT32)
    assert str(caught.value).count(". ") <= 1


def test_matrices_of_one_layer_that_round_their_input_otherwise_are_refused(
    with_ascend: Counter[str], tmp_path: Path
) -> None:
    folder, _ = write(tmp_path, "slim-w8a8")
    change_tensors(
        folder,
        lambda tensors: tensors.update(
            {"model.layers.1.self_attn.v_proj.input_scale": np.array([0.5], np.float32)}
        ),
    )
    with pytest.raises(
        UnsupportedError, match=r"layers\.1.*linear_qkv rounds one input by several"
    ):
        LLM(folder, **ASCEND, **FLOAT32)


@pytest.mark.parametrize(
    ("tensor", "value", "error", "words"),
    [
        ("input_offset", 2.5, CheckpointError, "input_offset holds 2.5, expected a whole number"),
        ("input_offset", 200, CheckpointError, "input_offset holds 200"),
        ("input_scale", 1e-6, UnsupportedError, "whose reciprocal float16 does not hold"),
        ("input_scale", 1e9, UnsupportedError, "whose reciprocal float16 does not hold"),
        ("input_scale", np.nan, CheckpointError, "not a positive number"),
        ("deq_scale", 0, CheckpointError, "not a positive number"),
    ],
)
def test_values_that_the_operators_cannot_take_are_one_sentence(
    tensor: str,
    value: float,
    error: type[Exception],
    words: str,
    calls: Counter[str],
    tmp_path: Path,
) -> None:
    folder, _ = write(tmp_path, "slim-w8a8")

    def damage(tensors: dict[str, np.ndarray]) -> None:
        name = f"model.layers.0.mlp.down_proj.{tensor}"
        tensors[name] = np.full_like(tensors[name], value)

    change_tensors(folder, damage)
    with pytest.raises(error, match=words):
        open_runner(folder, "float16")


@pytest.mark.parametrize("value", [1e-9, 1e6])
def test_scales_that_the_type_of_activations_does_not_hold_are_one_sentence(
    value: float, calls: Counter[str], tmp_path: Path
) -> None:
    folder, _ = write(tmp_path, "slim-w8a16")

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.mlp.down_proj.weight_scale"][3] = value

    change_tensors(folder, change)
    with pytest.raises(UnsupportedError, match=r"layers\.0.*linear_fc2 has a scale of .*float16"):
        open_runner(folder, "float16")


def test_zero_points_behind_the_first_rows_are_found(calls: Counter[str], tmp_path: Path) -> None:
    folder, _ = write(tmp_path, "slim-w8a8-dynamic")

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.mlp.gate_up_proj.weight_offset"][-1] = 1

    change_tensors(folder, change)
    with pytest.raises(CheckpointError, match="zero points in some rows and none in the first"):
        open_runner(folder, "float32")


def test_a_folder_with_scales_of_an_int8_cache_runs_with_a_float_cache_alone(
    with_ascend: Counter[str], tmp_path: Path
) -> None:
    source = hf_oracle.save_random_checkpoint(tmp_path / "hf")
    folder = folders.write_kv_scales(source, tmp_path / "quantized")
    with pytest.raises(UnsupportedError, match=r"int8 KV cache .*set kv_cache_dtype to float32"):
        LLM(folder, **ASCEND, **FLOAT32)
    prompt, model = list(range(3, 20)), hf_oracle.load(source)
    stored_oracle.put_into(model, folder)
    expected = hf_oracle.logits_of(model, prompt)
    with LLM(folder, **ASCEND, **FLOAT32, kv_cache_dtype="float32", max_model_len=64) as llm:
        assert relative_error(llm.logits(prompt), expected) < EXACT
