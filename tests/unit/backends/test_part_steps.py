"""The steps of a self-test are such as an engine makes, and of every kind."""

import numpy as np
import pytest

from mindformers_glm.backends.part_steps import NUM_GREEDY_TOKENS, SHORTEST_CONTEXT, SelfTestSteps

BLOCK_SIZE = 32


@pytest.fixture(params=[SHORTEST_CONTEXT, 256])
def steps(request: pytest.FixtureRequest) -> SelfTestSteps:
    return SelfTestSteps(500, BLOCK_SIZE, request.param)


def test_each_row_is_written_once_where_its_block_table_says(steps: SelfTestSteps) -> None:
    written: set[int] = set()
    for _, batch in steps:
        assert not written & set(batch.slot_mapping.tolist())
        written |= set(batch.slot_mapping.tolist())
        for number, (table, seq_len) in enumerate(
            zip(batch.block_tables, batch.seq_lens, strict=True)
        ):
            rows = slice(batch.query_start[number], batch.query_start[number + 1])
            positions = batch.positions[rows]
            assert positions[-1] == seq_len - 1
            blocks = batch.slot_mapping[rows] // BLOCK_SIZE
            assert [table[p // BLOCK_SIZE] for p in positions] == blocks.tolist()
            assert (batch.slot_mapping[rows] % BLOCK_SIZE == positions % BLOCK_SIZE).all()
        assert len(set(written)) < steps.num_blocks * BLOCK_SIZE


def test_steps_are_of_every_kind() -> None:
    kinds = {
        name: (np.diff(batch.query_start).tolist(), batch.seq_lens.tolist())
        for name, batch in SelfTestSteps(500, BLOCK_SIZE, 256)
    }
    assert kinds == {
        "prompts": ([1, 31, 32, 150], [1, 31, 32, 150]),
        "one token each": ([1, 1, 1, 1], [2, 32, 33, 151]),
        "chunk, token and prompt": ([7, 1, 9], [39, 152, 9]),
    }


def test_blocks_of_a_text_do_not_lie_behind_each_other() -> None:
    _, batch = next(iter(SelfTestSteps(500, BLOCK_SIZE, 256)))
    longest = np.array(batch.block_tables[-1])
    assert (np.diff(longest) != 1).any()


def test_greedy_text_has_room_for_all_its_tokens(steps: SelfTestSteps) -> None:
    tokens = steps.greedy_prompt()
    batch = steps.greedy_step(tokens, 0)
    assert batch.token_ids.tolist() == tokens
    longest = [*tokens, *range(NUM_GREEDY_TOKENS)]
    batch = steps.greedy_step(longest, len(longest) - 1)
    assert batch.seq_lens.tolist() == [len(longest)]
    assert batch.token_ids.tolist() == longest[-1:]
