"""The workers of bench_generate.py: what they do when asked, and how they fail."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from generate.worker_process import WorkerError, WorkerProcess
from protocol import Worker

DECODE = {"do": "decode", "sequences": 2, "context": 16, "steps": 3}


class _Recorder:
    """Counts what a runner is asked."""

    version = ""
    weight_bytes_per_token = 0
    allocated_bytes = None

    def __init__(self) -> None:
        self.started: list[list[list[int]]] = []
        self.num_steps = 0

    def start(self, prompts: list[list[int]]) -> None:
        self.started.append(prompts)

    def step(self) -> None:
        self.num_steps += 1

    def prefill(self, prompt: list[int]) -> int:
        return prompt[-1]


def _start_process(variant: str) -> WorkerProcess:
    command = [sys.executable, str(Path(__file__).with_name("fake_worker.py")), "no-model"]
    command += ["--variant", variant, "--threads=1", "--vocab_size=100"]
    command += ["--max_sequences=2", "--max_model_len=64"]
    return WorkerProcess("fake", command, dict(os.environ))


@pytest.fixture
def process() -> Iterator[WorkerProcess]:
    with _start_process("good") as process:
        yield process


def test_decode_times_every_step() -> None:
    runner = _Recorder()
    answer = Worker(runner, vocab_size=100, max_model_len=64).answer(DECODE)
    assert len(answer["seconds"]) == runner.num_steps == 3
    assert [len(prompt) for prompt in runner.started[0]] == [16, 16]


def test_sequences_go_on_while_the_shape_is_the_same() -> None:
    runner = _Recorder()
    worker = Worker(runner, vocab_size=100, max_model_len=64)
    worker.answer(DECODE)
    worker.answer(DECODE)
    assert len(runner.started) == 1
    worker.answer(DECODE | {"sequences": 1})
    assert len(runner.started) == 2


def test_sequences_start_again_before_they_are_too_long() -> None:
    runner = _Recorder()
    # 16 tokens of context and 2 of room for starting leave 6: two commands of 3 steps.
    worker = Worker(runner, vocab_size=100, max_model_len=24)
    for _ in range(3):
        worker.answer(DECODE)
    assert len(runner.started) == 2


def test_sequences_start_again_after_a_prefill() -> None:
    runner = _Recorder()
    worker = Worker(runner, vocab_size=100, max_model_len=64)
    worker.answer(DECODE)
    worker.answer({"do": "prefill", "tokens": 4})
    worker.answer(DECODE)
    assert len(runner.started) == 2


def test_all_workers_draw_the_same_prompts() -> None:
    command = {"do": "prefill", "tokens": 4}
    tokens = [
        [worker.answer(command)["token"] for _ in range(5)]
        for worker in [Worker(_Recorder(), 100, 64), Worker(_Recorder(), 100, 64)]
    ]
    assert tokens[0] == tokens[1]
    assert len(set(tokens[0])) > 1


def test_unknown_command_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown command"):
        Worker(_Recorder(), 100, 64).answer({"do": "sing"})


def test_process_says_what_it_loaded(process: WorkerProcess) -> None:
    assert process.ready["version"] == "fake 1"
    assert process.ready["weight_bytes_per_token"] == 1000


def test_what_a_library_prints_is_no_answer(process: WorkerProcess) -> None:
    assert len(process.ask(**DECODE)["seconds"]) == 3


def test_process_knows_its_memory(process: WorkerProcess) -> None:
    assert process.ask(do="memory")["peak_bytes"] > 2**20


def test_model_that_does_not_load_is_named_with_the_reason() -> None:
    with pytest.raises(WorkerError, match="fake: ValueError: no format unknown"):
        _start_process("unknown")


def test_worker_that_dies_leaves_its_code_and_last_words() -> None:
    with _start_process("dying") as process, pytest.raises(WorkerError, match="code 7") as caught:
        process.ask(**DECODE)
    assert "last words" in str(caught.value)
