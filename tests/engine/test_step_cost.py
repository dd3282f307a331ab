"""A step of a long answer does no more than a step of a short one."""

import statistics
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.engine import logit_changes
from mindformers_glm.engine.batch import build_slot_mapping
from mindformers_glm.engine.reply_reader import ReplyReader
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.tokenizer.replies import ReplyParser
from tests.engine.drive import make_engine
from tests.engine.fake_runner import FakeRunner

LENGTH = 1_500
NUM_COMPARED = 100  # steps at the beginning, and as many at the end


class _ForgetfulRunner(FakeRunner):
    """A token follows from the last one alone, so its own work does not grow either."""

    def execute(self, batch: ModelBatch) -> np.ndarray:
        logits = np.zeros((len(batch.sample_rows), self.vocab_size), np.float32)
        tokens = batch.token_ids[batch.sample_rows]
        logits[np.arange(len(tokens)), (tokens * 7 + 3) % self.vocab_size] = 1
        return logits


def _run(**params: Any) -> Iterator[tuple[RequestOutput, int]]:
    """Each output of a long answer, told apart, and the bytes that its step took at its most."""
    # Large blocks: the table of a sequence's blocks, a number each, is copied for every step.
    sizes = {"max_model_len": LENGTH + 2, "block_size": LENGTH, "num_blocks": 4}
    engine = make_engine(runner_type=_ForgetfulRunner, **sizes)
    reader = ReplyReader(ReplyParser("glm4", [{"name": "f"}], "glm_z1"))
    engine.add_request("0", [1], SamplingParams(max_new_tokens=LENGTH, **params))
    tracemalloc.start()
    try:
        while engine.has_unfinished():
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            (output,) = engine.step()
            output = reader.read(output)
            yield output, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "params", [{}, {"stop": ["zz"], "repetition_penalty": 1.1}], ids=["plain", "stop and penalty"]
)
def test_a_step_takes_no_more_memory_the_longer_the_answer_is(params: dict[str, Any]) -> None:
    text, token_ids, taken = "", [], []
    for output, num_bytes in _run(**params):
        text += output.delta_text
        token_ids += output.delta_token_ids
        taken.append(num_bytes)
    assert (output.text, output.token_ids) == (text, token_ids)
    assert output.reply is not None
    assert output.reply.content == text
    assert len(taken) == LENGTH
    first = statistics.median(taken[:NUM_COMPARED])
    last = statistics.median(taken[-NUM_COMPARED:])
    assert last < first + 500  # one copy of the token ids takes 12,000 bytes


def test_slots_are_looked_up_in_the_blocks_of_the_new_tokens_alone() -> None:
    class Table(list[int]):
        num_read = 0

        def __getitem__(self, index: Any) -> Any:
            found = super().__getitem__(index)
            self.num_read += len(found) if isinstance(index, slice) else 1
            return found

    table = Table(range(1000, 0, -1))
    assert build_slot_mapping(table, 3998, 4000, 4).tolist() == [4 * 1 + 2, 4 * 1 + 3]
    assert table.num_read == 1


def test_the_repetition_penalty_looks_at_each_token_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []

    def count(scores: np.ndarray, token_ids: np.ndarray, penalty: float) -> np.ndarray:
        looked_at.append(len(token_ids))
        return scores

    monkeypatch.setattr(logit_changes, "penalize_repetition", count)
    engine = make_engine(runner_type=_ForgetfulRunner, max_model_len=300)
    engine.add_request("0", [1], SamplingParams(max_new_tokens=200, repetition_penalty=1.1))
    while engine.has_unfinished():
        engine.step()
    assert len(looked_at) == 200
    assert max(looked_at) <= 50
