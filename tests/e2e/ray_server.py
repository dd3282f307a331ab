"""`serve --ray` and other programs of Ray as processes, and clients that tell what became of them.

Waits are for conditions; the limits only end what hangs.
"""

import json
import os
import re
import secrets
import signal
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tests.e2e.run_process import REPO

LIMIT_S = 900.0  # a machine with twenty times as much to do as it can
ENGINE = "ServeReplica:mindformers-glm:Engine"  # what Ray calls the processes
INGRESS = "ServeReplica:mindformers-glm:Ingress"
SERVER = "-m mindformers_glm serve"  # of a replica
_TOO_SLOW = re.compile(r"timed out during startup|proxies not available after")
_MOST_STARTS = 8
_CALLBACK = "mindformers_glm.serving.ray.proxy:middlewares"
_QUESTION = "请介绍一下北京"


Started = TypeVar("Started", bound="Program")


def environment() -> dict[str, str]:
    """Of programs of Ray's own: those of `mindformers-glm` set this by themselves."""
    return os.environ | {
        "PYTHONPATH": str(REPO),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": _CALLBACK,
    }


def wait_for(find: Callable[[], Any], tell: Callable[[], str] = str) -> Any:
    """What `find` gives at last; `tell` says more where it never gives anything."""
    end_s = time.monotonic() + LIMIT_S
    while time.monotonic() < end_s:
        if found := find():
            return found
        time.sleep(0.3)
    raise AssertionError(f"it did not come in {LIMIT_S:g} s: {tell()}")


class Program:
    """A process with what it has started.

    Args:
        folder: where it runs and its log is.
        prefix: what stands before the command.
    """

    def __init__(
        self,
        folder: Path,
        *command: str,
        prefix: tuple[str, ...] = (),
        environ: dict[str, str] | None = None,
    ) -> None:
        self._log = folder / f"{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", *command],
                cwd=folder,
                env=environ or os.environ | {"PYTHONPATH": str(REPO)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def wait_for(self, find: Callable[[], Any]) -> Any:
        """What `find` gives at last, while it runs."""

        def look() -> Any:
            if not (found := find()):
                assert self.process.poll() is None, self.log
            return found

        return wait_for(look, lambda: self.log)

    def find(self, words: str) -> list[psutil.Process]:
        """Its processes whose command line has these words."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if words in " ".join(_command(child))]

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """End it as a service manager does; it leaves nothing behind."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        try:
            exit_code = self.process.wait(LIMIT_S)
        finally:
            self.kill()
        _, left = psutil.wait_procs(children, timeout=LIMIT_S)
        for process in left:
            process.kill()
        assert not left, left
        return exit_code

    def kill(self) -> None:
        """End it without a word, if it runs."""
        self.process.kill()
        self.process.wait()


def start(make: Callable[[], Started], is_there: Callable[[Started], Any]) -> Started:
    """Start a program until it is there: a busy machine can be too slow for Ray.

    Ray 2.60 gives up starting after 30 s (node.py), and its proxies after 60 s.
    """
    for left in reversed(range(_MOST_STARTS)):
        program = make()
        try:
            program.wait_for(lambda: is_there(program))  # noqa: B023
            break
        except AssertionError:
            if not left or program.process.poll() is None or not _TOO_SLOW.search(program.log):
                program.kill()
                raise
    return program


class RayServer(Program):
    """A `serve --ray`; see `start_server`."""

    def __init__(self, folder: Path, *words: str, **options: Any) -> None:
        super().__init__(folder, "mindformers_glm", "serve", "--ray", *words, **options)

    @property
    def url(self) -> str:
        found = re.search(r"at (http://\S+)/v1, with", self.log)
        return found[1] if found else ""

    def addresses(self) -> set[str]:
        """Of the replicas that take requests."""
        return addresses(self.url)

    def wait_for_replicas(self, count: int) -> set[str]:
        """The addresses of so many that answer: a killed one is listed for a while."""

        def find() -> set[str]:
            found = self.addresses()
            return found if len(found) == count and all(map(is_healthy, found)) else set()

        found: set[str] = self.wait_for(find)
        return found


def start_server(folder: Path, *words: str, **options: Any) -> RayServer:
    """A `serve --ray` that answers."""
    return start(lambda: RayServer(folder, *words, **options), lambda server: server.url)


def addresses(url: str) -> set[str]:
    """Of the replicas that take requests, as an ingress knows them; empty where none answers."""
    try:
        with urllib.request.urlopen(f"{url}/replicas", timeout=30) as page:
            groups = json.load(page)
    except OSError:
        return set()
    ready = [one["targets"] for one in groups if one["labels"]["state"] == "ready"]
    return {target for targets in ready for target in targets}


def is_healthy(address: str) -> bool:
    """Whether the server there answers."""
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=5) as page:
            return bool(page.status == 200)
    except OSError:
        return False


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
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            text = answer.read().decode()
    except (OSError, urllib.error.HTTPError) as problem:
        return repr(problem)
    if not stream:
        return "whole" if json.loads(text)["choices"][0]["finish_reason"] == "length" else text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    if text.endswith("data: [DONE]\n\n"):
        return "whole"
    return "told" if len(events) > 1 and "error" in events[-1] else f"cut: {text[-200:]}"


def ask_while(
    url: str, act: Callable[[], None], enter: Callable[[], None] | None = None
) -> Counter[str]:
    """48 requests, 12 at once, half of them streams; `act` is done after the first ones.

    Prints what became of them (pytest -rP shows it).

    Args:
        enter: what each of the clients does first.
    """
    durations_s: list[float] = []

    def ask_one(number: int) -> str:
        begin_s = time.monotonic()
        result = ask(url, number, stream=number % 2 == 0)
        durations_s.append(time.monotonic() - begin_s)
        return result

    with ThreadPoolExecutor(12, initializer=enter) as pool:
        asked = [pool.submit(ask_one, number) for number in range(48)]
        while sum(one.done() for one in asked) < 8:
            time.sleep(0.02)
        act()
        became = Counter(one.result() for one in asked)
    middle_s, longest_s = statistics.median(durations_s), max(durations_s)
    print(f"{dict(became)}; a request took {middle_s:.1f} s, at most {longest_s:.1f} s")
    return became


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
