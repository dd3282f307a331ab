"""Memory for weights: where it lies, and that placing it changes nothing."""

import ctypes
from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.backends.cpu import (
    fused_layers,
    loading,
    mapped_memory,
    tile_packing,
    weighted_module,
)
from mindformers_glm.backends.cpu.allocation import HUGE_PAGE, allocate, count_numa_nodes
from mindformers_glm.backends.cpu.parameters import as_parameter
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.weights.packed_file import read_file, write_file
from mindformers_glm.weights.packed_header import lay_out


@pytest.mark.parametrize("shape", [(3, 5, 16, 32), (1,), (5000,), (4099, 3), (1, 4096)])
def test_first_touch_leaves_zeros(shape):
    array = allocate(shape, "float32")
    mapped_memory.first_touch(array)
    assert not array.any()


def test_first_touch_refuses_what_it_cannot_write():
    array = np.zeros((4, 4), np.float32)
    with pytest.raises(ValueError, match="contiguous"):
        mapped_memory.first_touch(array[:, 1:])
    array.flags.writeable = False
    with pytest.raises(ValueError, match="written"):
        mapped_memory.first_touch(array)


def test_nodes_are_counted(tmp_path: Path):
    assert count_numa_nodes(tmp_path) == 1
    for name in ("node0", "node1", "possible"):
        (tmp_path / "sys/devices/system/node" / name).mkdir(parents=True)
    assert count_numa_nodes(tmp_path) == 2


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_weights_are_placed_before_loading_where_there_are_several_nodes(monkeypatch, num_nodes):

    touched: list[tuple[int, ...]] = []
    monkeypatch.setattr(weighted_module, "count_numa_nodes", lambda: num_nodes)
    monkeypatch.setattr(mapped_memory, "first_touch", lambda array: touched.append(array.shape))
    settings = RunnerSettings.with_defaults("float32", 64)
    fused_layers.NormLinear(64, 48, True, 16, 1e-5, settings, "linear_qkv").place_weights()
    expected = [(64,), tile_packing.packed_shape(48, 64), (48,)]
    assert sorted(touched) == (sorted(expected) if num_nodes > 1 else [])
    monkeypatch.setattr(loading, "count_numa_nodes", lambda: num_nodes)
    assert (loading.file_mapper() is None) is (num_nodes > 1)


def write_pages(path: Path, num_bytes: int) -> np.ndarray:
    content = np.random.default_rng(0).integers(0, 255, num_bytes, np.uint8)
    path.write_bytes(content.tobytes())
    return content


@pytest.mark.parametrize("extra", [0, 1000, 4096])
def test_an_array_becomes_a_part_of_a_file_and_fresh_memory_again(tmp_path: Path, extra):
    size = 2 * 2**20 + extra
    content = write_pages(tmp_path / "file", 2 * 2**20 + size)
    array = allocate((size // 4,), "float32")
    memory = array.view(np.uint8)
    memory.fill(7)
    with (tmp_path / "file").open("rb") as file:
        mapped_memory.map_file(array, file.fileno(), 2 * 2**20)
    np.testing.assert_array_equal(memory, content[2 * 2**20 :])
    memory[5] ^= 1  # the process's own, not the file's
    assert (tmp_path / "file").read_bytes() == content.tobytes()
    mapped_memory.map_file(array, -1, 0)
    assert not array.any()
    memory.fill(3)


def test_an_offset_off_a_huge_page_is_refused(tmp_path: Path, capfd):
    write_pages(tmp_path / "file", 4 * 2**20)
    with (tmp_path / "file").open("rb") as file, pytest.raises(RuntimeError):
        mapped_memory.map_file(allocate((2**20,), "float32"), file.fileno(), 4096)
    assert "huge pages" in capfd.readouterr().err


def alias(address: int, num_bytes: int) -> np.ndarray:
    """Bytes at an address, which keep nothing alive."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))


def assert_refused(array: np.ndarray) -> None:
    for call in (
        lambda: mapped_memory.map_file(array, -1, 0),
        lambda: mapped_memory.give_back(array),
    ):
        with pytest.raises(ValueError, match="are not the whole of one array"):
            call()


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        (4, 4 * HUGE_PAGE),  # starts off a huge page
        (HUGE_PAGE, 4 * HUGE_PAGE),  # the second huge page of an array and what follows
        (0, 3 * HUGE_PAGE),  # ends before the array does
        (0, 2 * HUGE_PAGE + 4),  # ... and the page that it ends in holds more
        (0, 4 * HUGE_PAGE + 4096),  # partly owned: goes on behind the array
        (-HUGE_PAGE, 4 * HUGE_PAGE),  # partly owned: begins before it
    ],
)
def test_only_the_whole_of_an_array_is_mapped_over(start, stop):
    array = allocate((4 * HUGE_PAGE,), "uint8")
    array.fill(7)
    assert_refused(alias(array.ctypes.data + start, stop - start))
    assert (array == 7).all()


def test_memory_of_others_is_not_mapped_over():
    array = np.ones(4 * HUGE_PAGE, np.uint8)
    start = -array.ctypes.data % HUGE_PAGE
    assert_refused(array[start : start + 2 * HUGE_PAGE])
    assert array.all()


def test_memory_that_is_gone_is_not_mapped_over():
    array = allocate((2 * HUGE_PAGE,), "uint8")
    gone = alias(array.ctypes.data, array.nbytes)
    mapped_memory.map_file(gone, -1, 0)
    del array
    assert_refused(gone)


def test_an_array_in_another_order_is_not_mapped_over():
    assert_refused(allocate((1024, 2048), "float32").T)


def test_other_views_of_the_whole_are_the_same_memory():
    array = allocate((1024, 2048), "float32")
    array.fill(7)
    mapped_memory.give_back(as_parameter(array, "float32", "weight").asnumpy())
    assert not array.any()


def test_a_view_keeps_the_memory_and_its_owner():
    view = allocate((2 * HUGE_PAGE,), "uint8").view(np.float32)
    view.fill(7)
    mapped_memory.give_back(view)
    assert not view.any()


def test_a_small_array_is_not_given_back():
    array = np.ones(1024, np.float32)
    mapped_memory.give_back(array)
    assert array.all()


def test_a_packed_file_gives_the_same_bytes_mapped_or_copied(tmp_path: Path):
    def make(seed: int | None) -> dict[str, np.ndarray]:
        arrays = {
            "tiles": allocate((5, 3, 2**18), "bfloat16"),
            "norm": allocate((4096,), "float32"),
            "more": allocate((3 * 2**20 + 7,), "float32"),
        }
        rng = np.random.default_rng(seed)
        for array in arrays.values() if seed is not None else ():
            array[:] = rng.integers(0, 2**16, array.shape)
        return arrays

    written = make(1)
    key = {"identity": "1", "format": {}}
    planned = lay_out("/models/GLM", key, written)
    write_file(tmp_path / "x.glmpack", planned, written)
    for map_file in (mapped_memory.map_file, None):
        arrays = make(None)
        # How much the system maps in huge pages, if anything, is its own affair.
        mapped = read_file(tmp_path / "x.glmpack", key, arrays, map_file)
        tiles, more = written["tiles"].nbytes, written["more"].nbytes
        assert mapped in (0, tiles, more, tiles + more)
        assert mapped == 0 or map_file is not None
        np.testing.assert_equal(arrays, written)
