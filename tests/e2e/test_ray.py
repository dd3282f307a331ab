"""`serve --ray` and `predict --ray` as processes, of which some are killed -9."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.run_process import REPO

pytest.importorskip("ray")

_START_S = 240.0  # a busy machine
_QUESTION = "请介绍一下北京"


class RayServer:
    """A `serve --ray replicas=2` with its processes."""

    def __init__(self, folder: Path, *words: str, prefix: tuple[str, ...] = ()) -> None:
        self._log = folder / "serve.log"
        command = [sys.executable, "-m", "mindformers_glm", "serve", "--ray", *words]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*prefix, *command, "--port", "0"],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(REPO)},
                stdout=log,
                stderr=log,
            )
        self.url = self.wait_for(lambda: re.search(r"at (http://\S+)/v1, without", self.log))[1]

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def wait_for(self, find: Callable[[], Any]) -> Any:
        """What `find` gives at last."""
        end_s = time.monotonic() + _START_S
        while time.monotonic() < end_s:
            assert self.process.poll() is None, self.log
            if found := find():
                return found
            time.sleep(0.2)
        raise AssertionError(f"it did not come in {_START_S} s: {self.log}")

    def addresses(self) -> set[str]:
        """Of the replicas that take requests."""
        with urllib.request.urlopen(f"{self.url}/replicas", timeout=30) as page:
            groups = json.load(page)
        ready = [one["targets"] for one in groups if one["labels"]["state"] == "ready"]
        return {target for targets in ready for target in targets}

    def find(self, words: str) -> list[psutil.Process]:
        """Its processes whose command line has these words."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if words in " ".join(_command(child))]

    def end(self) -> int:
        """End it as a service manager does."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def ask(url: str, number: int, *, stream: bool = False, max_tokens: int = 24) -> str:
    """What became of one request: "whole", "told" after a first token, or what went wrong."""
    body = {
        "model": "glm4-mini",
        "messages": [{"role": "user", "content": f"{number}: {_QUESTION}"}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": stream,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            text = answer.read().decode()
    except (OSError, urllib.error.HTTPError) as problem:
        return repr(problem)
    if not stream:
        return "whole" if json.loads(text)["choices"][0]["finish_reason"] == "length" else text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    if text.endswith("data: [DONE]\n\n"):
        return "whole"
    return "told" if len(events) > 1 and "error" in events[-1] else f"cut: {text[-200:]}"


def ask_while(url: str, act: Callable[[], None]) -> Counter[str]:
    """48 requests, 12 at once, half of them streams; `act` is done meanwhile."""
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, url, n, stream=n % 2 == 0) for n in range(48)]
        while sum(one.done() for one in asked) < 8:
            time.sleep(0.02)
        act()
        return Counter(one.result() for one in asked)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayServer]:
    server = RayServer(tmp_path_factory.mktemp("ray"), "replicas=2")
    try:
        server.wait_for(lambda: len(server.addresses()) == 2)
        yield server
    finally:
        children = psutil.Process(server.process.pid).children(recursive=True)
        assert server.end() == 0, server.log
        _, left = psutil.wait_procs(children, timeout=30)
        assert not left, left


def test_a_killed_replica_costs_no_request_without_a_token(server: RayServer) -> None:
    # Each replica is a server by itself; what comes through an ingress is its answer.
    for address in server.addresses():
        assert ask(f"http://{address}", 0) == "whole"
    victim = server.find("-m mindformers_glm serve")[0]
    became = ask_while(server.url, victim.kill)
    assert became["whole"] + became["told"] == 48, became
    assert became["told"] <= 12, became


@pytest.mark.slow
def test_the_replica_is_back_by_itself(server: RayServer) -> None:
    server.wait_for(lambda: len(server.addresses()) == 2)
    before = server.addresses()
    server.find("ServeReplica:mindformers-glm:Engine")[0].kill()  # Ray's own process this time
    assert server.wait_for(lambda: len(server.addresses() & before) == 1)
    server.wait_for(lambda: len(server.addresses()) == 2)
    assert server.addresses() != before


@pytest.mark.slow
def test_a_killed_ingress_costs_no_request_without_a_token(server: RayServer) -> None:
    victim = server.find("ServeReplica:mindformers-glm:Ingress")[0]
    became = ask_while(server.url, victim.kill)
    assert became["whole"] + became["told"] == 48, became
    server.wait_for(lambda: len(server.find("ServeReplica:mindformers-glm:Ingress")) == 2)


@pytest.mark.slow
def test_predict_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("".join(f"{n} + {n} =\n" for n in range(64)))
    types = "--model.model_config.params_dtype float32 --model.model_config.compute_dtype float32"
    words = f"{types} --predict_batch_size 4 --max_new_tokens 8 --predict_data q.txt"
    command = [sys.executable, "-m", "mindformers_glm", "predict", *words.split()]
    options: dict[str, Any] = {"cwd": tmp_path, "env": os.environ | {"PYTHONPATH": str(REPO)}}
    alone = subprocess.run(
        [*command, "--save_file", "alone.jsonl"], capture_output=True, timeout=300, **options
    )
    assert alone.returncode == 0
    command += ["--save_file", "ray.jsonl", "--ray", "replicas=2"]
    killed = subprocess.Popen(command, stderr=subprocess.DEVNULL, **options)
    journal = tmp_path / "ray.jsonl.unfinished"
    end_s = time.monotonic() + _START_S
    while not (journal.exists() and len(journal.read_text().splitlines()) > 10):
        assert time.monotonic() < end_s
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"\d+ of 64 answers are there from a run before", ended.stderr)
    assert (tmp_path / "ray.jsonl").read_bytes() == (tmp_path / "alone.jsonl").read_bytes()
    assert not journal.exists()
