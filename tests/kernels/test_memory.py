"""Memory for weights: where it lies, and that placing it changes nothing."""

from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.core.runner_settings import RunnerSettings
from mindformers_glm.kernels.cpu import library
from mindformers_glm.kernels.cpu.memory import allocate, count_numa_nodes


@pytest.mark.parametrize("shape", [(3, 5, 16, 32), (1,), (5000,), (4099, 3), (1, 4096)])
def test_first_touch_leaves_zeros(shape):
    array = allocate(shape, "float32")
    library.first_touch(array)
    assert not array.any()


def test_first_touch_refuses_what_it_cannot_write():
    array = np.zeros((4, 4), np.float32)
    with pytest.raises(ValueError, match="contiguous"):
        library.first_touch(array[:, 1:])
    array.flags.writeable = False
    with pytest.raises(ValueError, match="written"):
        library.first_touch(array)


def test_nodes_are_counted(tmp_path: Path):
    assert count_numa_nodes(tmp_path) == 1
    for name in ("node0", "node1", "possible"):
        (tmp_path / "sys/devices/system/node" / name).mkdir(parents=True)
    assert count_numa_nodes(tmp_path) == 2


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_weights_are_placed_before_loading_where_there_are_several_nodes(monkeypatch, num_nodes):
    from mindformers_glm.kernels.cpu import cells

    touched: list[tuple[int, ...]] = []
    monkeypatch.setattr(cells, "count_numa_nodes", lambda: num_nodes)
    monkeypatch.setattr(library, "first_touch", lambda array: touched.append(array.shape))
    settings = RunnerSettings.with_defaults("float32", 64)
    cells.NormLinear(64, 48, True, 1e-5, settings).place_weights()
    expected = [(64,), library.packed_shape(48, 64), (48,)]
    assert sorted(touched) == (sorted(expected) if num_nodes > 1 else [])
