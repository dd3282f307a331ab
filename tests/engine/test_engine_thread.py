"""Requests that come from other threads, answered by an engine in its own."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.core.errors import GlmError
from mindformers_glm.engine.engine_thread import EngineThread, Event, Milestone
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.request_frontend import Request
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from tests.engine.fake_runner import FakeRunner

LONG = SamplingParams(max_new_tokens=4000, ignore_eos=True)


class Listener:
    """Keeps the events of each request, and lets a test wait for something in them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended: list[BaseException | None] = []
        self._changed = threading.Condition()

    def take(self, events: list[Event]) -> None:
        with self._changed:
            self.events += events
            self._changed.notify_all()

    def wait_for(self, is_there: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(is_there, timeout=20)

    def outputs(self, request_id: str) -> list[RequestOutput]:
        return [
            event
            for name, event in list(self.events)
            if name == request_id and isinstance(event, RequestOutput)
        ]

    def milestones(self, request_id: str) -> list[object]:
        return [event for name, event in self.events if name == request_id][:2]

    def last(self, request_id: str) -> RequestOutput:
        self.wait_for(lambda: any(output.finished for output in self.outputs(request_id)))
        return self.outputs(request_id)[-1]


@pytest.fixture(autouse=True)
def _long_context(edit: Callable[..., None]) -> None:
    edit("config.json", max_position_embeddings=4096)


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def thread(checkpoint: Path, listener: Listener) -> Iterator[EngineThread]:
    thread = EngineThread(
        lambda: LLM(checkpoint, max_model_len=4096, block_size=4),
        listener.take,
        listener.ended.append,
    )
    thread.start()
    yield thread
    thread.stop(20)


def _request(name: str, token_ids: list[int], **params: object) -> Request:
    return Request(name, token_ids, SamplingParams(**({"max_new_tokens": 5} | params)))


def test_answers_are_those_of_a_generate(
    thread: EngineThread, listener: Listener, checkpoint: Path
) -> None:
    prompts = [[1, 2, 3], [4, 5], [6] * 40]
    for index, prompt in enumerate(prompts):
        thread.add(_request(str(index), prompt))
    found = [listener.last(str(index)) for index in range(3)]
    with LLM(checkpoint) as llm:
        expected = llm.generate(prompts, SamplingParams(max_new_tokens=5))
    assert [output.token_ids for output in found] == [output.token_ids for output in expected]


def test_milestones_come_before_tokens(thread: EngineThread, listener: Listener) -> None:
    thread.add(_request("a", [1, 2]))
    listener.last("a")
    assert listener.milestones("a") == [Milestone.ACCEPTED, Milestone.STARTED]


def test_only_the_last_output_where_that_is_enough(
    thread: EngineThread, listener: Listener
) -> None:
    thread.add(_request("a", [1, 2]), whole_only=True)
    thread.add(_request("b", [1, 2]))
    assert listener.last("a").token_ids == listener.last("b").token_ids
    assert len(listener.outputs("a")) == 1 < len(listener.outputs("b"))


def test_a_refused_request_has_one_output(thread: EngineThread, listener: Listener) -> None:
    thread.add(_request("a", [1] * 5000))
    assert listener.last("a").finish_reason == "error"
    assert listener.milestones("a") == listener.outputs("a")
    assert "4096" in (listener.last("a").error or "")


def test_an_aborted_request_frees_its_blocks_and_says_nothing_more(
    thread: EngineThread, listener: Listener
) -> None:
    thread.add(Request("a", [1] * 100, LONG))
    listener.wait_for(lambda: len(listener.outputs("a")) > 3)
    assert thread.state.num_free_blocks < thread.state.num_blocks
    thread.abort("a")
    thread.abort("unknown")
    thread.add(_request("b", [2]))
    listener.last("b")
    num_outputs = len(listener.outputs("a"))
    time.sleep(0.05)
    assert len(listener.outputs("a")) == num_outputs
    assert thread.state.num_free_blocks == thread.state.num_blocks
    assert not any(output.finished for output in listener.outputs("a"))


def test_blocks_of_an_aborted_request_are_free_one_step_later(
    thread: EngineThread, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    free_after_step: list[int] = []
    is_aborted = threading.Event()
    execute = FakeRunner.execute

    def watch(runner: FakeRunner, batch: ModelBatch) -> np.ndarray:
        if is_aborted.is_set():
            free_after_step.append(thread.state.num_free_blocks)
        return execute(runner, batch)

    monkeypatch.setattr(FakeRunner, "execute", watch)
    thread.add(Request("stays", [7], LONG))
    thread.add(Request("goes", [1] * 400, LONG))
    listener.wait_for(lambda: len(listener.outputs("goes")) > 3)
    thread.abort("goes")
    is_aborted.set()
    listener.wait_for(lambda: len(free_after_step) > 4)
    thread.abort("stays")
    # One step may have been under way; it is told when it has ended.
    assert free_after_step[2] - free_after_step[0] >= 100
    assert free_after_step[2] >= thread.state.num_blocks - 60


def test_an_engine_that_fails_tells_it_and_is_not_alive(
    checkpoint: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(runner: FakeRunner, batch: ModelBatch) -> np.ndarray:
        raise RuntimeError("no more memory")

    thread = EngineThread(lambda: LLM(checkpoint), listener.take, listener.ended.append)
    thread.start()
    assert thread.is_alive
    monkeypatch.setattr(FakeRunner, "execute", fail)
    thread.add(_request("a", [1]))
    while thread.is_alive:
        time.sleep(0.01)
    thread.stop(20)
    assert [str(problem) for problem in listener.ended] == ["no more memory"]
    assert not thread.is_alive


def test_what_loading_raises_is_raised_by_start(checkpoint: Path, listener: Listener) -> None:
    (checkpoint / "config.json").unlink()
    thread = EngineThread(lambda: LLM(checkpoint), listener.take, listener.ended.append)
    with pytest.raises(GlmError, match=r"config\.json"):
        thread.start()
    assert listener.ended == []


def test_a_defect_in_one_request_ends_that_request(
    thread: EngineThread, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread.add(Request("a", [1], "no parameters"))  # type: ignore[arg-type]
    assert "internal error" in (listener.last("a").error or "")
    thread.add(_request("b", [1]))
    assert listener.last("b").finish_reason == "length"


def test_stop_ends_with_requests_under_way(checkpoint: Path, listener: Listener) -> None:
    thread = EngineThread(lambda: LLM(checkpoint), listener.take, listener.ended.append)
    thread.start()
    thread.add(Request("a", [1], LONG))
    listener.wait_for(lambda: len(listener.outputs("a")) > 1)
    thread.stop(20)
    assert listener.ended == [None]
    assert not thread.is_alive


def test_the_engine_runs_in_one_thread(
    thread: EngineThread, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set()
    execute = FakeRunner.execute

    def watch(runner: FakeRunner, batch: ModelBatch) -> np.ndarray:
        names.add(threading.current_thread().name)
        return execute(runner, batch)

    monkeypatch.setattr(FakeRunner, "execute", watch)
    for index in range(4):
        threading.Thread(target=thread.add, args=[_request(str(index), [index])]).start()
    for index in range(4):
        listener.last(str(index))
    assert names == {"engine"}
