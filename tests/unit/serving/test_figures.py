"""The last line of a run."""

import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from mindformers_glm.serving import figures
from mindformers_glm.serving.figures import RunFigures
from tests.unit.serving.echo import Echo, answer_to


class Times:
    """A clock for time.perf_counter."""

    CLOCK_BOOTTIME = 7
    now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def clock_gettime(self, clock: int) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Times:
    clock = Times()
    monkeypatch.setattr(figures, "time", clock)
    return clock


def test_line_tells_tokens_speeds_times_and_memory(
    clock: Times, capsys: pytest.CaptureFixture[str]
) -> None:
    told, llm = RunFigures(), Echo()
    clock.now_s = 2.5
    told.end_loading(llm)
    step_times = llm.times
    step_times.num_prompt_tokens, step_times.prompt_s = 10, 0.25
    step_times.num_first_tokens, step_times.num_next_tokens, step_times.answer_s = 1, 63, 6.3
    output = replace(answer_to("a"), prompt_token_ids=[7] * 12, num_cached_tokens=2)
    clock.now_s = 2.75
    told.take(0, replace(output, delta_token_ids=[]))
    clock.now_s = 2.8
    told.take(0, output)
    clock.now_s = 9.0
    told.take(0, output)
    told.tell(llm, ranks=1)
    line = capsys.readouterr().err
    assert re.fullmatch(
        r"mindformers_glm: prompt 12 tokens, 40\.0 tokens/s; answer 64 tokens, 10\.0 tokens/s; "
        r"first token after 0\.300 s; load 2\.50 s; peak memory [\d.]+ (MB|GB)\n",
        line,
    ), line


def test_one_token_has_no_speed_and_ranks_are_named(
    clock: Times, capsys: pytest.CaptureFixture[str]
) -> None:
    told, llm = RunFigures(), Echo()
    told.end_loading(llm)
    step_times = llm.times
    step_times.num_prompt_tokens, step_times.prompt_s = 1, 0.5
    step_times.num_first_tokens = 2
    for index in range(2):
        told.take(index, answer_to("a"))
    told.tell(llm, ranks=2)
    line = capsys.readouterr().err
    assert "prompts 2 tokens, 2.00 tokens/s; answers 2 tokens; first" in line
    assert line.endswith(" on rank 0 of 2\n")


def test_verbose_tells_what_the_line_is_made_of(
    clock: Times, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mindformers_glm.system.log._is_verbose", True)
    told, llm = RunFigures(), Echo()
    told.end_loading(llm)
    for index, now_s in enumerate((1.0, 2.0, 4.0)):
        clock.now_s = now_s
        told.take(index, answer_to("a"))
    llm.compile_s = 0.75
    told.tell(llm, ranks=1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == [
        "time:",
        "tokens:",
        "first",
        "memory:",
        "prompts",
    ]
    assert "load 0 s (0.500 s of it compiling)" in lines[0]
    assert "(0.250 s of both compiling)" in lines[0]
    assert "the soonest after 1.00 s, half of them after 2.00 s, the last after 4.00 s" in lines[2]
    assert lines[3].endswith("weights 3.00 MB, KV cache 2.00 GB")


def test_nothing_is_told_where_no_prompt_could_run(capsys: pytest.CaptureFixture[str]) -> None:
    told = RunFigures()
    told.take(0, answer_to("bad"))
    told.tell(Echo(), ranks=1)
    assert capsys.readouterr().err == ""


def test_the_start_is_told_to_a_hundredth_of_a_second() -> None:
    program = (
        "import time; now_s = time.time();"
        "from mindformers_glm.serving.figures import RunFigures;"
        "print(now_s, RunFigures()._start_s + now_s - time.time())"
    )
    before_s = time.time()
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    now_s, start_s = map(float, run.stdout.split())
    assert -0.02 < now_s - before_s - start_s < 5  # the process began between both
