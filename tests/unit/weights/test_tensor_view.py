"""Views of cut columns: their neighbours up to a group's border, and the whole rows' maxima."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from mindformers_glm.core.sharding import Piece
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.tensor_view import find_row_maxima


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_row_maxima_are_the_largest_magnitudes(dtype):
    values = np.float32(
        [
            [1.5, -2.5, 0.25],
            [3, 2, 1],
            [-3, -2, -1],
            [-0.0, 0.0, -0.0],
            [1e-30, -2e-30, 0],
            [-np.inf, 5, 6],
            [np.inf, -np.inf, 0],
        ]
    )
    rows = values.astype(np.float16) if dtype == "float16" else values
    if dtype == "bfloat16":
        rows = (values.view(np.uint32) >> 16).astype(np.uint16)
        values = (rows.astype(np.uint32) << 16).view(np.float32)
    found = find_row_maxima(rows, dtype)
    assert found.dtype == np.float32
    expected = np.abs(rows.astype(np.float32) if dtype == "float16" else values).max(axis=1)
    np.testing.assert_array_equal(found, expected)


def test_what_is_no_number_is_the_maximum():
    rows = np.float32([[1, np.nan, np.inf], [-np.nan, 2, -3]])
    assert np.isnan(find_row_maxima(rows, "float32")).all()
    assert np.isnan(find_row_maxima(rows.astype(np.float16), "float16")).all()


def test_cut_columns_know_their_neighbours_and_their_whole_rows(tmp_path):
    whole = np.random.default_rng(0).standard_normal((7, 200), np.float32)
    save_file({"w": whole}, tmp_path / "model.safetensors")
    with Checkpoint.open(tmp_path) as checkpoint:
        view = checkpoint.view("w", Piece(range(7), range(50, 100)))
        np.testing.assert_array_equal(view.data, whole[:, 50:100])
        wide = view.widened(32)
        np.testing.assert_array_equal(wide.data, whole[:, 32:128])
        assert wide.kept == range(18, 68)
        np.testing.assert_array_equal(wide.row_maxima(2, 5), np.abs(whole[2:5]).max(axis=1))
        all_columns = checkpoint.view("w", Piece(range(7), range(200)))
        assert all_columns.widened(128) is all_columns
        assert all_columns.row_maxima(0, 7) is None
