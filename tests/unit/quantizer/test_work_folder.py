"""Results kept on disk: read back as they were, and for no other job."""

from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.core.quantized_linear import DYNAMIC, STATIC
from mindformers_glm.quantizer.recipe import Recipe
from mindformers_glm.quantizer.result import KvScales, LayerResult, StaticRange
from mindformers_glm.quantizer.rounding import round_module
from mindformers_glm.quantizer.work_folder import open_work_folder


def _make_result() -> LayerResult:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 64)).astype(np.float32)
    static = StaticRange(np.float32(0.3), np.float32(-5))
    modules = (
        round_module("a.q", weight, weight[:, 0], Recipe(activation=STATIC), None, static),
        round_module("a.k", weight, None, Recipe(weight_bits=4, is_symmetric=False, group_size=32)),
        round_module("a.v", weight, None, Recipe(4, DYNAMIC, group_size=32)),
    )
    scales = KvScales(*rng.random((4, 8), np.float32))
    return LayerResult(modules, {"a.norm.weight": weight[0]}, "a", scales, 3)


def _describe(result: LayerResult) -> object:
    """What can be compared."""

    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            return value.dtype.str, value.shape, value.tobytes()
        if hasattr(value, "__dict__"):
            return {name: plain(member) for name, member in vars(value).items()}
        if isinstance(value, dict):
            return {name: plain(member) for name, member in value.items()}
        return [plain(member) for member in value] if isinstance(value, tuple) else value

    return plain(result)


def test_a_result_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    result = _make_result()
    with open_work_folder(tmp_path / "work", "job") as folder:
        folder.save_result(result)
    with open_work_folder(tmp_path / "work", "job") as folder:
        assert folder.has_result(3)
        assert not folder.has_result(None)
        assert _describe(folder.load_result(3)) == _describe(result)


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with open_work_folder(tmp_path / name, "job") as folder:
            folder.save_result(_make_result())
    files = [tmp_path / name / "layer_00003.safetensors" for name in ("first", "second")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_layer_counts_once_the_next_ones_input_is_there(tmp_path: Path) -> None:
    with open_work_folder(tmp_path / "work", "job") as folder:
        folder.save_result(_make_result())
        assert folder.num_finished == 0
        folder.finish(4, {"quantized": np.ones((2, 2), np.float32)})
        assert folder.num_finished == 4
        assert folder.load_activations()["quantized"].tolist() == [[1, 1], [1, 1]]


def test_the_work_of_another_job_is_refused(tmp_path: Path) -> None:
    with open_work_folder(tmp_path / "work", "job"):
        pass
    with (
        pytest.raises(CheckpointError, match="another quantization"),
        open_work_folder(tmp_path / "work", "other"),
    ):
        pass


def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="not empty"), open_work_folder(tmp_path, "job"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


def test_two_runs_cannot_work_in_one_folder(tmp_path: Path) -> None:
    with (
        open_work_folder(tmp_path, "job"),
        pytest.raises(CheckpointError, match="Another process"),
        open_work_folder(tmp_path, "job"),
    ):
        pass


def test_a_broken_result_says_what_to_do(tmp_path: Path) -> None:
    with open_work_folder(tmp_path, "job") as folder:
        folder.save_result(_make_result())
        (tmp_path / "layer_00003.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0")
        with pytest.raises(CheckpointError, match="remove the work folder"):
            folder.load_result(3)
