"""Quantized folders cut for ranks hold what ranks would have read of the whole ones."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.errors import CheckpointError, UnsupportedError
from mindformers_glm.core.quantized_linear import QuantizedRows
from mindformers_glm.core.sharding import LARGEST_GROUP, TensorParallel
from mindformers_glm.quantization.share_format import DESCRIPTION_NAME, ShareEncoder
from mindformers_glm.quantization.stored_format import find_format
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rule_checks import check_rules
from mindformers_glm.weights.rules import WeightRule, build_rules, list_schemes
from mindformers_glm.weights.share_writer import write_shares
from mindformers_glm.weights.shares import MANIFEST_NAME
from tests import part_folders
from tests import quantized_folders as folders
from tests.unit.quantization.float_folder import write_float_folder

_ALL = folders.WEIGHT_ONLY | folders.WITH_ACTIVATIONS | folders.CHATGLM
ROW_PARALLEL_KEY = re.compile("linear_(proj|fc2)")
# Their values are of a table.
_REFUSED = [name for name in _ALL if name.startswith(("bnb-nf4", "bnb-fp4"))]
_READ = [name for name in _ALL if name not in _REFUSED]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Float folders by model_type; 4 ranks have 128 inner columns each but the last."""
    root = tmp_path_factory.mktemp("float")
    return {
        kind: write_float_folder(root / kind, kind, intermediate_size=480)
        for kind in ("glm4", "chatglm")
    }


@pytest.fixture
def cut(sources: dict[str, Path], tmp_path: Path) -> Callable[[str, int], tuple[Path, Path]]:
    """Write a random folder of a case and cut it: (whole, cut)."""

    def make(name: str, size: int) -> tuple[Path, Path]:
        whole, output = tmp_path / "whole", tmp_path / "cut"
        folders.write(sources["chatglm" if name in folders.CHATGLM else "glm4"], whole, _ALL[name])
        write_shares(whole, output, size, find_format, ShareEncoder())
        return whole, output

    return make


def open_rank(folder: Path, rank: TensorParallel) -> tuple[Checkpoint, tuple[WeightRule, ...]]:
    """The rank's checkpoint, to be closed, and its rules."""
    config = GlmConfig.from_hf(folder)
    checkpoint = Checkpoint.open(folder, rank, find_format)
    rules = build_rules(config, checkpoint.cuts(config, rank), checkpoint.quantized)
    check_rules(rules, checkpoint)
    return checkpoint, rules


def read_all(
    checkpoint: Checkpoint, rules: tuple[WeightRule, ...], group: int
) -> dict[str, np.ndarray]:
    """All that operators are given, by the parameter and what it is.

    Args:
        group: columns are widened up to borders of groups of so many.
    """
    found = {}
    for rule in rules:
        for number, source in enumerate(rule.sources):
            name = f"{rule.parameter} {number}"
            for place, piece in enumerate(source.pieces):
                if source.linear is None:
                    found[f"{name} {place}"] = checkpoint.view(source.name, piece).data
                    continue
                view = checkpoint.quantized_view(source.name, source.linear, piece).widened(group)
                found[f"{name} {place} kept"] = np.array(view.kept or range(len(view.columns)))
                static = view.read_activation()
                if static is not None:
                    found |= {f"{name} {place} {k}": np.array(v) for k, v in asdict(static).items()}
                for first, rows in view.quantized_chunks():
                    parts = spread(rows)
                    found |= {f"{name} {place} {first} {k}": v for k, v in parts.items()}
    return found


def spread(rows: QuantizedRows) -> dict[str, np.ndarray]:
    """Codes, and scale and zero point of each: how groups are numbered does not matter."""
    zeros = np.zeros_like(rows.scales) if rows.zeros is None else rows.zeros
    values = {"scales": rows.scales[:, rows.groups], "zeros": zeros[:, rows.groups]}
    return {"codes": rows.codes} | values


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", _READ)
def test_a_rank_reads_of_its_file_what_it_reads_of_the_whole_folder(
    name: str, size: int, cut: Callable[[str, int], tuple[Path, Path]]
) -> None:
    whole, output = cut(name, size)
    for number in range(size):
        rank = TensorParallel(size, number)
        (theirs, rules), (ours, own_rules) = open_rank(whole, rank), open_rank(output, rank)
        with theirs, ours:
            assert list_schemes(own_rules) == list_schemes(rules)
            assert ours.quantized is not None
            assert theirs.quantized is not None
            assert ours.quantized.tool == theirs.quantized.tool
            # Group sizes of operators, of which some begin and end within a rank's columns.
            group = (1, 32, LARGEST_GROUP)[number % 3]
            expected, found = read_all(theirs, rules, group), read_all(ours, own_rules, group)
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if number and key.endswith("quant_bias") and ROW_PARALLEL_KEY.search(key):
                value = np.zeros_like(value)  # the first rank adds it
            assert found[key].ndim == 0 or found[key].dtype == value.dtype, key
            np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_int4_stays_two_to_a_byte_and_a_rank_has_its_part(
    cut: Callable[[str, int], tuple[Path, Path]],
) -> None:
    whole, output = cut("slim-w4a16", 2)
    sizes = [file.stat().st_size for file in sorted(output.glob("*.safetensors"))]
    all_bytes = sum(file.stat().st_size for file in whole.glob("*.safetensors"))
    assert max(sizes) < 0.75 * all_bytes  # embeddings and norms are float32 here


def test_a_description_that_is_missing_or_damaged_is_one_sentence(
    cut: Callable[[str, int], tuple[Path, Path]],
) -> None:
    _, output = cut("gptq-v1", 2)
    file = output / DESCRIPTION_NAME
    text = file.read_text()
    for changed, words in (
        ("{}", "is damaged: cut the original checkpoint anew"),
        ('{"tool": "x", "layers": 3}', "is damaged"),
        ('{"tool": "x", "layers": {"a": {}}}', "is damaged"),
        (
            text.replace('"weight_bits": 4', '"weight_bits": 3'),
            "has no scheme for 'model.layers.0.",
        ),
        (text.replace('"group_size": 32', '"group_size": "a"'), "has no scheme for"),
    ):
        file.write_text(changed)
        assert words in refusal(output)
    file.unlink()
    assert f"lacks {DESCRIPTION_NAME}: copy it too" in refusal(output)


def test_a_description_of_other_layers_is_one_sentence(
    cut: Callable[[str, int], tuple[Path, Path]],
) -> None:
    _, output = cut("gptq-v1", 2)
    file = output / DESCRIPTION_NAME
    raw = json.loads(file.read_text())
    raw["layers"]["model.layers.0.mlp.down_proj"]["is_symmetric"] = False
    file.write_text(json.dumps(raw))
    assert "1 missing: model.layers.0.mlp.down_proj.weight_offset" in refusal(output)
    del raw["layers"]["model.layers.0.mlp.down_proj"]
    file.write_text(json.dumps(raw))
    assert "model.layers.0.mlp.down_proj.weight_codes" in refusal(output)


@pytest.mark.parametrize("value", ["../x", 3])
def test_a_manifest_that_names_another_place_is_damaged(
    value: object, cut: Callable[[str, int], tuple[Path, Path]]
) -> None:
    _, output = cut("gptq-v1", 2)
    file = output / MANIFEST_NAME
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization": value}))
    assert "is damaged" in refusal(output)


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_rank(folder, TensorParallel(2, 1))[0].close()
    assert str(caught.value).count("\n") == 0
    return str(caught.value)


def test_what_the_tool_said_may_lie_beside(
    cut: Callable[[str, int], tuple[Path, Path]], tmp_path: Path
) -> None:
    """quant_model_description.json comes along, and describes another folder."""
    _, output = cut("slim-w8a16", 2)
    assert (output / "quant_model_description.json").exists()
    shutil.move(output, tmp_path / "elsewhere")
    checkpoint, _ = open_rank(tmp_path / "elsewhere", TensorParallel(2, 0))
    with checkpoint:
        assert checkpoint.quantized is not None


@pytest.mark.parametrize("name", [*_REFUSED, "parts"])
def test_what_is_cut_by_its_ranks_alone_is_one_sentence(
    name: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    if name == "parts":
        part_folders.write(sources["glm4"], tmp_path / "whole", 2)
    else:
        folders.write(sources["glm4"], tmp_path / "whole", _ALL[name])
    with pytest.raises(UnsupportedError, match="are not cut beforehand: give the folder itself"):
        write_shares(tmp_path / "whole", tmp_path / "cut", 2, find_format, ShareEncoder())
    assert not (tmp_path / "cut").exists()
