"""Embedding, RMSNorm, the residual's sum and row gathering against the NumPy reference."""

import numpy as np
import pytest
from aot_call import call

from tests.conftest import TOLERANCES, relative_error
from tests.kernels import reference
from tests.kernels.kernel_calls import UNTOUCHED, count, loaded, output, scalar, stored

WIDTHS = [1, 15, 16, 17, 64, 100, 4097]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("offset", [0, 1, 13], ids=lambda n: f"{n} bytes off")
def test_embedding_reads_unaligned_tables(
    isa: str, rng: np.random.Generator, dtype: str, width: int, offset: int
) -> None:
    table = stored(rng.standard_normal((9, width)), dtype)
    # As in a mapped safetensors file: the tensor starts anywhere.
    memory = np.zeros(table.nbytes + offset, np.uint8)
    memory[offset:] = table.ravel().view(np.uint8)
    unaligned = memory[offset:].view(np.uint8)
    mapped = np.ndarray(table.shape, table.dtype, buffer=unaligned.data)
    ids = np.int32([8, 0, 3, 3, 7])
    y = call("glm_embedding", ids, mapped, count(4), out=output(5, width))
    np.testing.assert_array_equal(y[:4], reference.embedding(ids, loaded(table), 4)[:4])
    assert (y[4:] == UNTOUCHED).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_parts_of_an_embedding_add_up_to_the_whole(
    isa: str, rng: np.random.Generator, dtype: str
) -> None:
    table = stored(rng.standard_normal((9, 33)), dtype)
    ids = np.int32([8, 0, 3, 5, 2, 6])
    total = np.zeros((5, 33), np.float32)
    for first in (0, 3, 6):
        part, vocabulary = table[first : first + 3].copy(), np.int32([first, 9])
        y = call("glm_embedding", ids, part, count(5), vocabulary, out=output(6, 33))
        np.testing.assert_array_equal(
            y[:5], reference.embedding(ids, loaded(part), 5, first_id=first)[:5]
        )
        assert (y[5:] == UNTOUCHED).all()
        total += y[:5]
    np.testing.assert_array_equal(total, loaded(table)[ids[:5]])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_rms_norm_equals_reference(
    isa: str, rng: np.random.Generator, width: int, scale: float
) -> None:
    x = (scale * rng.standard_normal((6, width))).astype(np.float32)
    weight = rng.standard_normal(width).astype(np.float32)
    residual = rng.standard_normal((6, width)).astype(np.float32)
    y = call("glm_rms_norm", x, weight, scalar(1e-5), count(5), out=output(6, width))
    expected = reference.rms_norm(x, weight, 1e-5, 5)
    assert relative_error(y[:5], expected[:5]) < TOLERANCES["kernel_float32"]
    assert (y[5:] == UNTOUCHED).all()
    y = call("glm_rms_norm_add", x, weight, scalar(1e-5), residual, count(5), out=output(6, width))
    expected = reference.rms_norm_add(x, weight, 1e-5, residual, 5)
    assert relative_error(y[:5], expected[:5]) < TOLERANCES["kernel_float32"]
    assert (y[5:] == UNTOUCHED).all()


def test_rms_norm_of_zeros_is_zero(isa: str) -> None:
    x, weight = np.zeros((1, 20), np.float32), np.ones(20, np.float32)
    y = call("glm_rms_norm", x, weight, scalar(1e-5), count(1), out=output(1, 20))
    assert (y == 0).all()


@pytest.mark.parametrize("num_rows", [0, 1, 5, 6])
@pytest.mark.parametrize("width", WIDTHS)
def test_residual_add_equals_reference(rng: np.random.Generator, num_rows: int, width: int) -> None:
    branch, residual = rng.standard_normal((2, 6, width)).astype(np.float32)
    y = call("glm_residual_add", branch, residual, count(num_rows), out=output(6, width))
    expected = reference.residual_add(branch, residual, num_rows)
    np.testing.assert_array_equal(y[:num_rows], expected[:num_rows])
    assert (y[num_rows:] == UNTOUCHED).all()


def test_residual_add_of_many_rows_is_shared_by_threads(rng: np.random.Generator) -> None:
    branch, residual = rng.standard_normal((2, 33, 4097)).astype(np.float32)
    y = call("glm_residual_add", branch, residual, count(32), out=output(33, 4097))
    np.testing.assert_array_equal(y[:32], residual[:32] + branch[:32])
    assert (y[32:] == UNTOUCHED).all()


def test_gather_rows_copies_the_sampled_rows(rng: np.random.Generator) -> None:
    x = rng.standard_normal((7, 33)).astype(np.float32)
    rows = np.int32([6, 0, 0, 2])
    y = call("glm_gather_rows", x, rows, count(3), out=output(4, 33))
    np.testing.assert_array_equal(y[:3], reference.gather_rows(x, rows, 3)[:3])
    assert (y[3:] == UNTOUCHED).all()
