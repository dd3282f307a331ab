"""The pipeline without an oracle: what it refuses, what it keeps, and kills in the middle."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mindformers_glm.core.errors import CheckpointError, ConfigError, UnsupportedError
from mindformers_glm.core.quantized_linear import DYNAMIC, STATIC
from mindformers_glm.quantizer.job_checks import needs_samples
from mindformers_glm.quantizer.pipeline import quantize
from mindformers_glm.quantizer.recipe import Recipe
from mindformers_glm.quantizer.result import LayerResult
from mindformers_glm.weights.checkpoint import Checkpoint
from tests.e2e.random_checkpoint import write_checkpoint

W8A8 = Recipe(activation=STATIC)
SAMPLES = [[1, 2, 3, 4, 5], [7], [9, 8, 7]]
# A job with both streams of activations, and files of every kind.
KILLED = Recipe(
    activation=STATIC, anti_method="m1", has_kv_scales=True, disable_level=2, quantizes_output=True
)
_KILL = """
import os, signal, sys
from pathlib import Path
from mindformers_glm.quantizer import work_folder
from tests.unit.quantizer.test_pipeline import KILLED, SAMPLES, run
place, folder, work = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
calls = 0
write = work_folder.WorkFolder._write
def write_or_die(self, name, content):
    global calls
    if calls == place:
        os.kill(os.getpid(), signal.SIGKILL)
    calls += 1
    write(self, name, content)
work_folder.WorkFolder._write = write_or_die
run(folder, work, KILLED)
"""


def run(folder: Path, work: Path, recipe: Recipe = W8A8) -> list[LayerResult]:
    """All results."""
    with Checkpoint.open(folder) as checkpoint:
        return list(quantize(checkpoint, recipe, SAMPLES, work))


def _files(work: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in work.iterdir()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("float"), num_hidden_layers=3)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an undisturbed run leaves."""
    work = tmp_path_factory.mktemp("work") / "whole"
    run(folder, work, KILLED)
    return _files(work)


def test_every_tensor_of_a_layer_is_in_its_result_once(folder: Path, tmp_path: Path) -> None:
    disabled = "model.layers.1.mlp.down_proj"
    recipe = Recipe(activation=STATIC, disable_names=frozenset({disabled}))
    results = run(folder, tmp_path / "work", recipe)
    assert [result.number for result in results] == [0, 1, 2]
    with Checkpoint.open(folder) as checkpoint:
        for result in results:
            prefix = f"model.layers.{result.number}."
            given = [f"{module.name}.weight" for module in result.modules]
            given += [f"{module.name}.bias" for module in result.modules if module.bias is not None]
            given += result.float_tensors
            assert sorted(given) == sorted(n for n in checkpoint.entries if n.startswith(prefix))
            for name, values in result.float_tensors.items():
                np.testing.assert_array_equal(values, checkpoint.array(name))
    assert f"{disabled}.weight" in results[1].float_tensors
    assert len(results[1].modules) == 5


def test_weights_alone_need_no_samples(folder: Path, tmp_path: Path) -> None:
    recipe = Recipe(weight_bits=4)
    assert not needs_samples(recipe)
    assert not needs_samples(Recipe(activation=DYNAMIC))
    with Checkpoint.open(folder) as checkpoint:
        results = list(quantize(checkpoint, recipe, [], tmp_path / "work"))
    assert [len(result.modules) for result in results] == [6, 6, 6]


def test_the_output_layer_comes_last(folder: Path, tmp_path: Path) -> None:
    last = run(folder, tmp_path / "work", Recipe(activation=STATIC, quantizes_output=True))[-1]
    assert last.number is None
    assert [module.name for module in last.modules] == ["lm_head"]
    assert last.modules[0].static is not None


# Files are written in the order float_modules, layer 0, activations, layer 1, activations, ...
@pytest.mark.parametrize(
    ("place", "layers"),
    [(0, 0), (1, 0), (2, 1), (4, 2), (7, 3)],
    ids=["nothing", "widths", "layer", "layer again", "all but the output"],
)
def test_a_killed_run_goes_on_to_the_same_bytes(
    place: int, layers: int, folder: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    command = [sys.executable, "-c", _KILL, str(place), str(folder), str(work)]
    repo = str(Path(__file__).resolve().parents[3])
    done = subprocess.run(command, cwd=repo, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert sum(name.startswith("layer") for name in _files(work)) == layers
    run(folder, work, KILLED)
    assert _files(work) == whole


def test_results_that_are_done_are_not_made_again(folder: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with Checkpoint.open(folder) as checkpoint:
        results = quantize(checkpoint, W8A8, SAMPLES, work)
        first = next(results)
        results.close()
    made = os.stat(work / "layer_00000.safetensors").st_mtime_ns
    again = run(folder, work)
    assert os.stat(work / "layer_00000.safetensors").st_mtime_ns == made
    np.testing.assert_array_equal(again[0].modules[0].rows.codes, first.modules[0].rows.codes)
    assert again[0].float_tensors.keys() == first.float_tensors.keys()


@pytest.mark.parametrize(
    ("recipe", "samples", "error", "says"),
    [
        (W8A8, [], ConfigError, "no calibration samples"),
        (W8A8, [[1], []], ConfigError, "sample 1 has no tokens"),
        (W8A8, [[1, 10**6]], ConfigError, "token 1000000"),
        (Recipe(weight_bits=5), [[1]], ConfigError, "4 or 8 bits"),
        (Recipe(weight_bits=4, group_size=20), [[1]], UnsupportedError, "groups of 20"),
        (
            Recipe(disable_names=frozenset({"model.layers.9.mlp.down_proj"})),
            [[1]],
            CheckpointError,
            "no linear layer 'model.layers.9.mlp.down_proj'",
        ),
    ],
)
def test_what_cannot_work_is_refused_in_a_sentence(
    recipe: Recipe,
    samples: list[list[int]],
    error: type[Exception],
    says: str,
    folder: Path,
    tmp_path: Path,
) -> None:
    with Checkpoint.open(folder) as checkpoint, pytest.raises(error, match=says):
        list(quantize(checkpoint, recipe, samples, tmp_path / "work"))


def test_other_samples_are_another_job(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "work")
    with Checkpoint.open(folder) as checkpoint, pytest.raises(CheckpointError, match="another"):
        list(quantize(checkpoint, W8A8, [[1, 2]], tmp_path / "work"))


@pytest.mark.parametrize(
    ("value", "recipe", "says"),
    [
        (np.nan, Recipe(), r"layers.1.mlp.down_proj.weight .* no numbers"),
        (3e38, W8A8, r"input of model.layers.2.self_attn.q_proj has values"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow")
def test_weights_that_cannot_be_meant_are_named(
    value: float, recipe: Recipe, says: str, tmp_path: Path
) -> None:
    source = tmp_path / "float"
    source.mkdir()
    write_checkpoint(source, num_hidden_layers=3)
    for file in source.glob("*.safetensors"):
        tensors = load_file(file)
        if "model.layers.1.mlp.down_proj.weight" in tensors:
            tensors["model.layers.1.mlp.down_proj.weight"][3] = value
            save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=says):
        run(source, tmp_path / "work", recipe)
