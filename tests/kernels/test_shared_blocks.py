"""Sequences whose block tables name the same blocks (prefix caching)."""

import numpy as np
import pytest

from tests.kernels.test_attention import Case, Shape, check


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("writer_goes_first", [True, False])
def test_a_sequence_attends_to_what_another_writes_in_the_same_step(
    isa: str, rng: np.random.Generator, writer_goes_first: bool, dtype: str
) -> None:
    writer, reader = (0, 1) if writer_goes_first else (1, 0)
    lens = [(0, 37), (32, 3)] if writer_goes_first else [(32, 3), (0, 37)]
    case = Case(rng, Shape(dtype=dtype), *map(list, zip(*lens, strict=True)))
    case.rows.block_tables[reader, :8] = case.rows.block_tables[writer, :8]
    check(case)


def test_decoding_sequences_share_a_long_beginning(isa: str, rng: np.random.Generator) -> None:
    case = Case(rng, Shape(dtype="float16"), [2051, 2050, 2048], [1, 1, 2])
    case.rows.block_tables[1:, :512] = case.rows.block_tables[0, :512]
    check(case)
