"""What an LLM is to the process it lives in: memory, threads, Ctrl-C."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.backends.cpu import library
from tests.conftest import REPO
from tests.model import hf_oracle

GREEDY = SamplingParams(do_sample=False, max_new_tokens=8, ignore_eos=True)
_INTERRUPTED = """
import os, signal, sys, threading, time
from mindformers_glm import LLM, SamplingParams
if __name__ == "__main__":
    llm = LLM(sys.argv[1])
    params = SamplingParams(do_sample=False, max_new_tokens=400, ignore_eos=True)
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
    except KeyboardInterrupt:
        print("caught", flush=True)
    llm.generate(["warm up"], SamplingParams(max_new_tokens=2))
    for delay_s in (0.02, 0.1, 0.3):
        threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            while True:
                llm.generate(["hello"] * 8, params)
        except KeyboardInterrupt:
            print("caught", flush=True)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    print(len(llm.generate(["hello"], params)[0].token_ids))
"""

_FORKED = """
import multiprocessing, sys
from mindformers_glm import LLM

def say(llm):
    try:
        (llm or LLM(sys.argv[1])).generate([[1, 2]])
    except Exception as problem:
        print(type(problem).__name__, problem, flush=True)

if __name__ == "__main__":
    llm = LLM(sys.argv[1])
    llm.generate([[1, 2]])
    for start, used in (("fork", llm), ("fork", None), ("spawn", None)):
        child = multiprocessing.get_context(start).Process(target=say, args=(used,))
        child.start()
        child.join(60)
        print(start, child.exitcode, flush=True)
        child.kill()
"""


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers whose large matrices take nearly all of 110 MB."""
    return hf_oracle.save_random_checkpoint(
        tmp_path_factory.mktemp("wide"), hidden_size=1024, intermediate_size=4096
    )


def test_close_gives_the_weights_back(wide: Path) -> None:
    resident = []
    for _ in range(4):
        with LLM(str(wide)) as llm:
            llm.generate(["hello"], GREEDY)
            weights_bytes = llm.weights_bytes
        resident.append(psutil.Process().memory_info().rss)
    # The first time also brings what stays: threads, MindSpore's pool, the interpreter's memory.
    assert resident[-1] - resident[0] < 0.5 * weights_bytes, resident


def test_the_thread_that_runs_steps_keeps_the_operators_threads(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, int]] = []
    for name in ("keep_team", "leave_team"):
        run = getattr(library, name)

        def note(name: str = name, run: Callable[[], None] = run) -> None:
            calls.append((name, threading.get_ident()))
            run()

        monkeypatch.setattr(library, name, note)
    with LLM(str(tiny)) as llm, ThreadPoolExecutor(1) as pool:
        pool.submit(llm.generate, ["hello"], GREEDY).result()
        other = pool.submit(threading.get_ident).result()
    assert calls[0] == ("leave_team", threading.get_ident())
    assert len(calls) > 1
    assert set(calls[1:]) == {("keep_team", other)}


def test_two_llms_in_two_threads_take_turns(tiny: Path) -> None:
    with LLM(str(tiny)) as one, LLM(str(tiny)) as other:
        expected = one.generate(["hello"], GREEDY)[0].token_ids
        found: list[list[int]] = []

        def generate(llm: LLM) -> None:
            for _ in range(10):
                found.append(llm.generate(["hello"], GREEDY)[0].token_ids)

        threads = [
            threading.Thread(target=generate, args=(llm,), daemon=True) for llm in (one, other)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads)
    assert found == [expected] * 20


@pytest.mark.slow
def test_ctrl_c_is_an_exception_in_python_too(tiny: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, str(tiny)],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-5:] == ["caught"] * 4 + ["400"]


def test_a_forked_child_says_that_it_cannot_run(wide: Path, tmp_path: Path) -> None:
    script = tmp_path / "forked.py"
    script.write_text(_FORKED, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, script, wide],
        cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=True,
    )
    told = "UnsupportedError This process was forked from one that has loaded a model"
    lines = ended.stdout.splitlines()
    assert [line.startswith(told) for line in lines] == [True, False, True, False, False]
    assert lines[1::2][:2] == ["fork 0", "fork 0"]
    assert lines[-1] == "spawn 0"
