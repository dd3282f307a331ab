"""What upstream's `construct` is given for each kind of step."""

import numpy as np
import pytest

from mindformers_glm.backends.ascend.step_inputs import MASKED, make_upstream_step
from mindformers_glm.backends.runner import ModelBatch


def _batch(query_start: list[int], seq_lens: list[int], tables: list[list[int]]) -> ModelBatch:
    rows = [
        position
        for begin, end, length in zip(query_start[:-1], query_start[1:], seq_lens, strict=True)
        for position in range(length - (end - begin), length)
    ]
    return ModelBatch(
        token_ids=np.arange(len(rows), dtype=np.int32),
        positions=np.int32(rows),
        slot_mapping=np.int32(rows),
        query_start=np.int32(query_start),
        seq_lens=np.int32(seq_lens),
        block_tables=tables,
        sample_rows=np.int32([]),
        is_prompt=np.ones(len(rows), np.int32),
    )


@pytest.mark.parametrize(("dtype", "value"), [("bfloat16", 1.0), ("float16", MASKED)])
def test_prompts_get_a_triangle(dtype: str, value: float) -> None:
    step = make_upstream_step(_batch([0, 3, 5], [3, 2], [[7], [4]]), dtype)
    assert step.is_prefill
    assert step.q_seq_lens.tolist() == step.batch_valid_length.tolist() == [3, 2]
    assert step.context_lens_tensor.tolist() == [0, 0]
    assert step.attention_mask.shape == (128, 128)
    mask = step.attention_mask.astype(np.float32)  # NumPy compares no bfloat16
    assert mask[0, 1] == mask[126, 127] == value
    assert (np.tril(mask) == 0).all()


def test_single_rows_get_no_mask() -> None:
    step = make_upstream_step(_batch([0, 1, 2], [6, 1], [[1, 2], [3]]), "float16")
    assert not step.is_prefill
    assert step.context_lens_tensor.tolist() == [5, 0]
    assert step.attention_mask.tolist() == [[0.0]]
    assert step.block_tables.tolist() == [[1, 2], [3, 0]]
    assert step.block_tables.dtype == np.int32


def test_rows_beside_others_get_a_row_of_the_mask_each() -> None:
    step = make_upstream_step(_batch([0, 2, 3], [4, 1], [[0], [1]]), "float16")
    assert not step.is_prefill
    hidden = step.attention_mask == MASKED
    assert hidden.tolist() == [
        [False, False, False, True],
        [False, False, False, False],
        [False, True, True, True],
    ]
