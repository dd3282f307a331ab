"""What `inspect` says of a folder that is quantized already."""

from pathlib import Path

import pytest

from mindformers_glm.serving.inspect.command import Inspection, inspect_folder
from tests import quantized_folders as folders
from tests.unit.quantization.float_folder import write_float_folder


def look_at(tmp_path: Path, case: folders.Case) -> Inspection:
    tmp_path.mkdir(exist_ok=True)
    source = write_float_folder(tmp_path / "float", "glm4")
    folders.write(source, tmp_path / "quantized", case)
    return inspect_folder(tmp_path / "quantized")


def test_tool_format_schemes_and_float_layers_are_named(tmp_path: Path) -> None:
    found = look_at(tmp_path, folders.WEIGHT_ONLY["gptq-v1"])
    lines = dict(found.lines)
    assert lines["quantized by"] == "GPTQ (version 1)"
    assert lines["schemes"] == "12 matrices W4A16, groups of 32; 1 matrix float"
    assert lines["float layers"] == "output_layer"
    assert not {"widened", "widened on ranks"} & set(lines)
    assert found.facts["can_run"]
    facts = found.facts["quantization"]
    assert facts["kept_as"]["decoder.layers.0.mlp.linear_fc1"] == "w4a16"
    assert facts["kept_as"]["output_layer"] is None


def test_layers_that_lose_their_integers_are_told(tmp_path: Path) -> None:
    found = look_at(tmp_path, folders.WEIGHT_ONLY["bnb-nf4"])
    assert (
        "8 of 9 linear layers are quantized in a way that has no operator here"
        in (dict(found.lines)["widened"])
    )
    assert "NF4, groups of 64" in dict(found.lines)["schemes"]


def test_layers_that_lose_their_integers_on_several_ranks_are_told(tmp_path: Path) -> None:
    found = look_at(tmp_path, folders.WEIGHT_ONLY["gptq-v1-reordered"])
    assert "widened" not in dict(found.lines)
    told = dict(found.lines)["widened on ranks"]
    assert (
        "4 of 9 linear layers are quantized in a way that has no operator here on several" in told
    )
    names = found.facts["quantization"]["widened_layers_on_ranks"]
    assert {name.rpartition(".")[2] for name in names} == {"linear_proj", "linear_fc2"}
    assert found.facts["quantization"]["widened_layers"] == []


def test_memory_is_that_of_the_integers(tmp_path: Path) -> None:
    kept = look_at(tmp_path, folders.WEIGHT_ONLY["gptq-v1"]).facts["memory"]["weights_bytes"]
    widened = look_at(tmp_path / "b", folders.WEIGHT_ONLY["bnb-nf4"]).facts["memory"][
        "weights_bytes"
    ]
    assert list(kept) == [f"integers, {dtype} else" for dtype in ("float32", "float16", "bfloat16")]
    assert all(kept[name][0] < widened[name][0] for name in kept)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("slim-w8a8", "w8a8_static"),
        ("slim-w8a8-dynamic", "w8a8_token"),
        ("slim-w8a8-mix", "w8a8_mixed"),
        ("slim-w4a8-dynamic", "w4a8_token"),
    ],
)
def test_integer_activations_are_described(tmp_path: Path, name: str, kept: str) -> None:
    found = look_at(tmp_path, folders.WITH_ACTIVATIONS[name])
    assert found.facts["can_run"]
    assert dict(found.lines)["quantized by"] == "msModelSlim, new layout"
    assert "widened" not in dict(found.lines)
    facts = found.facts["quantization"]
    assert list(facts["schemes"].values()) == [12, 1]
    assert set(facts["kept_as"].values()) == {kept, None}


def test_a_float_folder_has_no_such_lines(tmp_path: Path) -> None:
    found = inspect_folder(write_float_folder(tmp_path / "float", "glm4"))
    assert "quantized by" not in dict(found.lines)
    assert found.facts["quantization"] is None


@pytest.mark.parametrize(
    ("case", "what"),
    [
        (folders.WEIGHT_ONLY["gptq-v1"], "a checkpoint quantized in W4A16, groups of 32"),
        (folders.WEIGHT_ONLY["awq"], "a checkpoint quantized in W4A16, groups of 32, asymmetric"),
        (folders.WEIGHT_ONLY["bnb-nf4"], "a checkpoint quantized in NF4, groups of 64"),
        (folders.WEIGHT_ONLY["ct-fp8"], "a checkpoint quantized in FP8"),
        (folders.WITH_ACTIVATIONS["slim-w8a8-mix"], "a checkpoint quantized in W8A8_MIX"),
    ],
)
def test_what_a_card_refuses_is_not_counted_for_it(
    case: folders.Case, what: str, tmp_path: Path
) -> None:
    found = look_at(tmp_path, case)
    for card in found.facts["cards"]:
        assert what in card["refused"]
        assert card["num_cards"] is None
        assert card["bytes_of_a_card"] is None
    for memory in ("64 GB", "32 GB"):
        line = dict(found.lines)[f"Ascend, {memory} a card"]
        assert line.startswith("refused there: ")
        assert what in line


def test_a_float32_folder_and_int8_by_rows_are_counted(tmp_path: Path) -> None:
    float_folder = write_float_folder(tmp_path / "float", "glm4")
    kept = look_at(tmp_path / "b", folders.WITH_ACTIVATIONS["slim-w8a8"])
    for found in (inspect_folder(float_folder), kept):
        for card in found.facts["cards"]:
            assert card["refused"] is None
            assert card["num_cards"] == 1
