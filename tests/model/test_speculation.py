"""Guessing ahead on the shipped checkpoint: the same tokens in fewer steps."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.backends.runner import ModelBatch
from tests.conftest import MINI

pytestmark = pytest.mark.weights
_GREEDY = SamplingParams(do_sample=False, max_new_tokens=60)
_SAMPLED = SamplingParams(temperature=0.8, seed=3, repetition_penalty=1.02, max_new_tokens=60)


class _Counted:
    """A loaded model and the rows of each of its steps."""

    def __init__(self, prompt_lookup_num_tokens: int) -> None:
        self.llm = LLM(MINI, max_model_len=512, prompt_lookup_num_tokens=prompt_lookup_num_tokens)
        self.rows_per_step: list[int] = []
        runner = self.llm.engine.runner
        execute = runner.execute

        def counted(batch: ModelBatch) -> np.ndarray:
            self.rows_per_step.append(len(batch.token_ids))
            return execute(batch)

        runner.execute = counted  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def plain() -> Iterator[_Counted]:
    counted = _Counted(0)
    yield counted
    counted.llm.close()


@pytest.fixture(scope="module")
def guessing() -> Iterator[_Counted]:
    counted = _Counted(7)
    yield counted
    counted.llm.close()


@pytest.fixture(scope="module")
def questions() -> list[list[dict[str, str]]]:
    lines = (MINI / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    held_out = [json.loads(line) for line in lines]
    return [question["messages"] for question in held_out if question["category"] == "copy"]


@pytest.mark.parametrize("params", [_GREEDY, _SAMPLED], ids=["greedy", "sampled"])
def test_copies_have_the_same_tokens_in_fewer_steps(
    plain: _Counted,
    guessing: _Counted,
    questions: list[list[dict[str, str]]],
    params: SamplingParams,
) -> None:
    num_steps = []
    token_ids = []
    for counted in (plain, guessing):
        counted.rows_per_step.clear()
        token_ids.append([counted.llm.generate([q], params)[0].token_ids for q in questions[:8]])
        num_steps.append(len(counted.rows_per_step))
    assert token_ids[0] == token_ids[1]
    assert num_steps[1] < 0.7 * num_steps[0]


def test_together_they_have_the_tokens_of_running_alone(
    plain: _Counted, guessing: _Counted, questions: list[list[dict[str, str]]]
) -> None:
    alone = [plain.llm.generate([question], _GREEDY)[0].token_ids for question in questions[:4]]
    outputs = guessing.llm.generate(questions[:4], _GREEDY)
    assert [output.token_ids for output in outputs] == alone


def test_a_stream_of_several_tokens_a_step_joins_to_the_text(
    guessing: _Counted, questions: list[list[dict[str, str]]]
) -> None:
    outputs = list(guessing.llm.stream(questions[0], _GREEDY))
    assert "".join(output.delta_text for output in outputs) == outputs[-1].text
    assert len(outputs) < len(outputs[-1].token_ids)
