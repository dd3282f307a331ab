"""Two ranks of which one is asked, as threads of this process on fake runners."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mindformers_glm.core.errors import PromptError
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.engine import led_engine
from mindformers_glm.engine.led_engine import LedEngine, follow
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.request_frontend import Request
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams

_PARAMS = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 1.5, "seed": 2**62 + 1},
    "drawn without a seed": {"temperature": 1.5},
    "several": {"temperature": 1.5, "n": 3, "presence_penalty": 0.5},
    "biased": {"logit_bias": {7: 3.5, 9: -100}, "stop_token_ids": [3], "logprobs": 2},
    "stopped": {"stop": ["e", "北"], "min_new_tokens": 2, "bad_words": ["a"]},
    "shaped": {"structured_outputs": {"choice": ["yes", "no"]}},
}


class _Pair:
    """Both ranks; `seen` are the token ids of each answer on rank 0, by request."""

    def __init__(self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: list[Exception] = []
        monkeypatch.setattr(led_engine, "_leave", self.left.append)
        self.losses: list[Exception] = []
        self._llms = [LLM(checkpoint, block_size=4) for _ in range(2)]
        self._barrier, self._given = threading.Barrier(2), {}
        views = [self._view(rank) for rank in range(2)]
        self.follower = threading.Thread(target=follow, args=[views[1]])
        self.follower.start()
        self.led = LedEngine(views[0], self.losses.append)  # type: ignore[arg-type]

    @property
    def engines(self) -> list[Any]:
        return [llm.engine for llm in self._llms]

    def request(self, name: str, **params: Any) -> Request:
        settings = SamplingParams(**({"max_new_tokens": 12} | params))
        return self._llms[0].frontend.new_request(name, [5, 6, 7], settings)

    def run(self) -> dict[str, RequestOutput]:
        last = {}
        while self.engines[0].has_unfinished():
            last |= {output.request_id: output for output in self.led.step()}
        return last

    def _view(self, rank: int) -> SimpleNamespace:
        llm = self._llms[rank]

        def gather(values: np.ndarray) -> np.ndarray:
            self._given[rank] = values
            self._barrier.wait(30)
            return np.stack([self._given[0], self._given[1]])

        group = ProcessGroup(TensorParallel(2, rank), gather)
        return SimpleNamespace(
            group=group, frontend=llm.frontend, engine=llm.engine, close=lambda: None
        )


@pytest.fixture
def pair(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Pair]:
    pair = _Pair(checkpoint, monkeypatch)
    yield pair
    pair.led.close()
    pair.follower.join(20)
    assert not pair.follower.is_alive()
    assert pair.left == []


@pytest.fixture
def watched(pair: _Pair, monkeypatch: pytest.MonkeyPatch) -> list[list[Any]]:
    """What each rank's steps gave, rank by rank: ids, tokens and texts."""
    seen: list[list[Any]] = [[], []]
    for engine, steps in zip(pair.engines, seen, strict=True):
        step: Callable[[], list[RequestOutput]] = engine.step

        def watch(step: Any = step, steps: Any = steps) -> list[RequestOutput]:
            outputs = step()
            steps.append([(o.request_id, o.to_dict(), o.error) for o in outputs])
            return outputs

        monkeypatch.setattr(engine, "step", watch)
    return seen


def test_all_ranks_have_the_same_steps(pair: _Pair, watched: list[list[Any]]) -> None:
    pytest.importorskip("llguidance")
    for name, params in _PARAMS.items():
        assert pair.led.submit(pair.request(name, **params)) is None
        pair.led.step()
    found = pair.run()
    pair.led.close()
    pair.follower.join(20)
    assert set(found) == set(_PARAMS)
    assert watched[0] == watched[1]
    assert found["shaped"].text in ("yes", "no")


def test_what_is_ended_is_ended_on_all(pair: _Pair, watched: list[list[Any]]) -> None:
    for name in ("goes", "stays"):
        pair.led.submit(pair.request(name, temperature=1.5))
    pair.led.step()
    pair.led.abort("goes")
    pair.led.abort("unknown")
    assert list(pair.run()) == ["stays"]
    pair.led.close()
    pair.follower.join(20)
    assert watched[0] == watched[1]
    assert [engine.pool.num_free for engine in pair.engines] == [
        engine.pool.num_blocks for engine in pair.engines
    ]


def test_a_refused_request_shifts_the_draws_of_all(pair: _Pair, watched: list[list[Any]]) -> None:
    refusal = pair.led.submit(Request("long", [1] * 90, SamplingParams()))
    assert "max_model_len" in (refusal.error if refusal else "")
    assert pair.led.submit(Request("wrong", [], SamplingParams(), "it is wrong")) is not None
    pair.led.submit(pair.request("drawn", temperature=1.5))
    pair.run()
    pair.led.close()
    pair.follower.join(20)
    assert watched[0] == watched[1]


def test_a_step_that_fails_on_a_rank_ends_its_process(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = _Pair(checkpoint, monkeypatch)

    def fail() -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr(pair.engines[1], "step", fail)
    pair.led.submit(pair.request("a"))
    pair.led.step()
    pair.follower.join(20)
    assert [str(problem) for problem in pair.left] == ["no more memory"]
    pair.led.close()


def test_a_rank_that_cannot_take_a_request_ends_its_process(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = _Pair(checkpoint, monkeypatch)
    steps: list[None] = []

    def refuse(*request: object) -> None:
        raise PromptError("there is no memory for it")

    monkeypatch.setattr(pair.engines[1].input_processor, "make_request", refuse)
    monkeypatch.setattr(pair.engines[1], "step", lambda: steps.append(None))
    assert pair.led.submit(pair.request("a")) is None
    pair.led.step()
    pair.follower.join(20)
    assert "request that rank 0 runs: there is no memory for it" in str(pair.left)
    assert steps == []
    pair.led.close()


def test_what_idle_ranks_are_to_be_told_does_not_grow(pair: _Pair) -> None:
    for _ in range(1000):
        assert pair.led.submit(Request("long", [1] * 90, SamplingParams())) is not None
        pair.led.abort("gone")
    assert len(pair.led._told) == 1
    pair.led.submit(pair.request("a"))
    pair.run()
    pair.led.close()
    pair.follower.join(20)
    assert [engine.num_requests_seen for engine in pair.engines] == [1001] * 2


def test_a_process_of_its_own_tells_nobody(checkpoint: Path) -> None:
    with LLM(checkpoint) as llm:
        led = LedEngine(llm, lambda problem: pytest.fail("there is no other"))
        led.submit(Request("a", [1, 2], SamplingParams(max_new_tokens=3)))
        tokens = []
        while llm.engine.has_unfinished():
            tokens += [token for output in led.step() for token in output.delta_token_ids]
        assert len(tokens) == 3
        led.close()
