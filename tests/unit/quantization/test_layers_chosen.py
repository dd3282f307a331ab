"""Which layers a folder's settings mean, and by which of them each is read."""

import re
from typing import Any

import numpy as np
import pytest

from mindformers_glm.core.quantized_linear import StoredScheme, TensorHeader
from mindformers_glm.quantization import compressed_tensors, gptq
from mindformers_glm.weights.tensor_entry import TensorEntry
from tests import quantized_folders as folders


class Stored:
    """Tensors of which only names are known."""

    def __init__(self, *names: str) -> None:
        self.entries: dict[str, TensorHeader] = {
            name: TensorEntry(name, "int32", (1,), None, 0, 4)  # type: ignore[arg-type]
            for name in names
        }

    def array(self, name: str) -> np.ndarray:
        raise AssertionError(f"{name} was read")


def scheme(found: Any) -> StoredScheme | None:
    return None if found is None else found.scheme


def test_gptqs_overrides_hold_for_the_layers_they_name() -> None:
    layers = [f"model.layers.{number}.mlp.down_proj" for number in (0, 1, 12)]
    raw = {
        "bits": 4,
        "group_size": 32,
        "dynamic": {r"+:.*\.1\..*": {"bits": 8, "group_size": 64}, r"-:.*\.0\..*": {}},
    }
    stored = Stored(*(f"{layer}.qweight" for layer in layers[1:]))
    found = gptq.open_format(raw, "config.json", stored)
    assert scheme(found.linear(layers[0], (64, 64))) is None
    first, second = (scheme(found.linear(layer, (64, 64))) for layer in layers[1:])
    assert first is not None
    assert second is not None
    assert (first.weight_bits, first.group_size) == (8, 64)
    assert (second.weight_bits, second.group_size) == (4, 32)


def _groups(*, ignored: list[str]) -> compressed_tensors.CompressedTensorsFormat:
    keys = folders._ct_keys("pack-quantized", {"num_bits": 4})["quantization_config"]
    by_class = keys["config_groups"]["group_0"]
    named = by_class | {
        "targets": ["re:.*down_proj", "model.layers.0.self_attn.o_proj"],
        "weights": by_class["weights"] | {"num_bits": 8},
    }
    raw = keys | {"config_groups": {"group_0": by_class, "group_1": named}, "ignore": ignored}
    return compressed_tensors.open_format(raw, "config.json", Stored())


@pytest.mark.parametrize(
    ("layer", "bits"),
    [
        ("model.layers.0.mlp.down_proj", 8),
        ("model.layers.0.self_attn.o_proj", 8),
        ("model.layers.10.self_attn.o_proj", 4),  # its name only begins alike
        ("model.layers.0.mlp.gate_up_proj", 4),
        ("lm_head", None),
        ("model.layers.7.mlp.gate_up_proj", None),
    ],
)
def test_a_layers_own_name_comes_before_its_class_and_ignored_ones_are_float(
    layer: str, bits: int | None
) -> None:
    found = scheme(_groups(ignored=["lm_head", r"re:.*\.7\..*"]).linear(layer, (64, 64)))
    assert (None if found is None else found.weight_bits) == bits


def test_layers_of_no_group_are_float() -> None:
    keys = folders._ct_keys("pack-quantized", {"num_bits": 4})["quantization_config"]
    keys["config_groups"]["group_0"]["targets"] = ["re:.*down_proj"]
    found = compressed_tensors.open_format(keys, "config.json", Stored())
    assert found.linear("model.layers.0.mlp.gate_up_proj", (64, 64)) is None


def test_schemes_are_named_as_people_call_them() -> None:
    names = {
        StoredScheme(4, 128): "W4A16, groups of 128",
        StoredScheme(8, is_symmetric=False): "W8A16, asymmetric",
        StoredScheme(4, 64, is_reordered=True): "W4A16, groups of 64, columns reordered",
        StoredScheme(8, has_float_codes=True): "FP8",
        StoredScheme(8, activation="dynamic"): "W8A8 dynamic",
        StoredScheme(8, activation="static", label="W8A8S"): "W8A8S",
    }
    assert {found: found.name for found in names} == names
    assert all(re.fullmatch(r"[\w ,]+", name) for name in names.values())


@pytest.mark.parametrize(
    "settings",
    [
        {  # AutoGPTQ 0.7
            "bits": 4,
            "group_size": 32,
            "damp_percent": 0.01,
            "desc_act": False,
            "static_groups": False,
            "sym": True,
            "true_sequential": True,
            "model_name_or_path": None,
            "model_file_base_name": None,
            "is_marlin_format": False,
        },
        {  # GPTQModel
            "bits": 4,
            "group_size": 32,
            "checkpoint_format": "gptq",
            "pack_dtype": "int32",
            "lm_head": False,
            "meta": {"quantizer": ["gptqmodel:2.0.0"], "adapter": None},
            "dynamic": None,
            "adapter": None,
        },
        {  # Hugging Face Optimum
            "bits": 4,
            "group_size": 32,
            "modules_in_block_to_quantize": [["self_attn.q_proj"], ["mlp.down_proj"]],
            "use_exllama": True,
            "exllama_config": {"version": 1},
            "tokenizer": None,
            "backend": "auto",
        },
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 32,
            "version": "GEMM",
            "modules_to_not_convert": ["lm_head"],
            "do_fuse": False,
            "backend": "autoawq",
        },
        {"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "zero_point": True},
    ],
    ids=["AutoGPTQ", "GPTQModel", "Optimum", "AutoAWQ", "older AutoAWQ"],
)
def test_settings_that_change_nothing_in_the_tensors_are_let_through(
    settings: dict[str, Any],
) -> None:
    layers = [f"model.layers.0.mlp.{name}" for name in ("down_proj", "gate_up_proj")]
    found = gptq.open_format(settings, "config.json", Stored(f"{layers[0]}.qweight"))
    assert scheme(found.linear(layers[1], (64, 64))) is None
    known = scheme(found.linear(layers[0], (64, 64)))
    assert known is not None
    assert (known.weight_bits, known.group_size) == (4, 32)


_Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        (["re:.*q_proj", _Q_PROJ], 1),  # the whole name before a pattern
        ([_Q_PROJ, "re:.*q_proj"], 0),
        (["re:.*q_proj", "re:.*attn.*"], 1),  # patterns by the alphabet
        (["re:.*attn.*", "re:.*q_proj"], 0),
        (["Linear", "re:.*q_proj"], 1),  # a name before the class
        (["Linear", "Linear"], 1),  # the last of the same
        (["re:.*Linear", "re:z"], 0),  # a pattern of the class
        (["re:model$", "Linear"], 1),
        (["re:q_proj", "q_proj"], None),  # from the beginning, or the whole
    ],
)
@pytest.mark.parametrize("is_ignored", [False, True])
def test_of_several_targets_the_tools_first_counts(
    targets: list[str], chosen: int | None, is_ignored: bool
) -> None:
    keys = folders._ct_keys("pack-quantized", {"num_bits": 4})["quantization_config"]
    group = keys["config_groups"]["group_0"]
    found = [
        group | {"targets": [target], "weights": group["weights"] | {"num_bits": bits}}
        for target, bits in zip(targets, (4, 8), strict=True)
    ]
    raw = keys | {"config_groups": {"first": found[0], "second": found[1]}}
    raw["ignore"] = targets if is_ignored else []
    form = compressed_tensors.open_format(raw, "config.json", Stored())
    known = scheme(form.linear(_Q_PROJ, (64, 64)))
    wanted = None if chosen is None or is_ignored else (4, 8)[chosen]
    assert (None if known is None else known.weight_bits) == wanted
