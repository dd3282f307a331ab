"""Servers that bench_serving.py asks: ours, llama.cpp's and vLLM's, each started and stopped here.

All are reached at 127.0.0.1 under a free port, have a place in the batch for every client, and
room for the longest prompt and answer of each.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from machine import REPO

from mindformers_glm.core.errors import GlmError

_START_S = 900.0
_STOP_S = 60.0
_SHOWN_LOG_CHARACTERS = 600


@dataclass(frozen=True)
class Place:
    """What every server is started with.

    Attributes:
        num_sequences: answers that are computed together.
        max_model_len: prompt and answer together.
    """

    threads: int
    num_sequences: int
    max_model_len: int


@dataclass(frozen=True)
class Running:
    """A server that answers: its name, its URL ending in /v1, and its process."""

    name: str
    url: str
    pid: int


@dataclass(frozen=True)
class OurServer:
    """`mindformers-glm serve` of this tree.

    Attributes:
        settings: NAME=VALUE.
    """

    name: str
    folder: str
    settings: tuple[str, ...] = ()

    def start(self, place: Place) -> AbstractContextManager[Running]:
        """Start it; the context ends it."""
        return self._start(place)

    @contextmanager
    def _start(self, place: Place) -> Iterator[Running]:
        command = [sys.executable, "-m", "mindformers_glm", "serve", self.folder, "--port", "0"]
        command += ["--max_num_seqs", str(place.num_sequences), "--any_model_name", "True"]
        command += ["--access_log", "False", "--max_model_len", str(place.max_model_len)]
        command += ["--num_threads", str(place.threads)]
        for setting in self.settings:
            name, _, value = setting.partition("=")
            command += [f"--{name}", value]
        environment = os.environ | {"PYTHONPATH": str(REPO)}
        process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        assert process.stderr is not None
        lines: list[str] = []
        try:
            for line in process.stderr:
                lines.append(line)
                if match := re.search(r"at (http://\S+/v1)", line):
                    # Nobody may stop reading, or the server's log would block it.
                    threading.Thread(target=process.stderr.read, daemon=True).start()
                    yield Running(self.name, match[1], process.pid)
                    return
            raise GlmError(f"{self.name} ended before it answered: {''.join(lines[-3:])}")
        finally:
            end(process)


@dataclass(frozen=True)
class LlamaCppServer:
    """llama.cpp's llama-server (build_llama_cpp.sh) with a GGUF file of make_gguf.py."""

    name: str
    binary: str
    gguf: str

    def start(self, place: Place) -> AbstractContextManager[Running]:
        """Start it; the context ends it."""
        port = free_port()
        # Every slot has an equal part of the context. Its cache of old prompts would take 8 GiB.
        context = place.num_sequences * place.max_model_len
        command = [self.binary, "-m", self.gguf, "--host", "127.0.0.1", "--port", str(port)]
        command += ["-t", str(place.threads), "-np", str(place.num_sequences), "-c", str(context)]
        command += ["-ngl", "0", "--cache-ram", "0"]
        return start_peer(self.name, command, port, dict(os.environ))


@dataclass(frozen=True)
class VllmServer:
    """vLLM's server for CPUs (build_vllm.sh); its KV cache is 2 GiB."""

    name: str
    python: str
    folder: str

    def start(self, place: Place) -> AbstractContextManager[Running]:
        """Start it; the context ends it."""
        port = free_port()
        command = [self.python, "-m", "vllm.entrypoints.openai.api_server", "--model", self.folder]
        command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
        command += ["--max-num-seqs", str(place.num_sequences)]
        command += ["--max-model-len", str(place.max_model_len)]
        processors = sorted(os.sched_getaffinity(0))[: place.threads]
        environment = os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, processors)),
            "HF_HUB_OFFLINE": "1",
        }
        environment.pop("PYTHONPATH", None)
        return start_peer(self.name, command, port, environment)


@contextmanager
def start_peer(
    name: str, command: list[str], port: int, environment: dict[str, str]
) -> Iterator[Running]:
    """Start a server whose /health says when it answers.

    Raises:
        GlmError: it ends before, with the last it has written.
    """
    with tempfile.TemporaryFile() as log:
        try:
            # A group of its own: vLLM's server has further processes.
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        except OSError as problem:
            raise GlmError(f"{name} cannot be started by {command[0]}: {problem}") from None
        try:
            _wait_until_healthy(name, f"http://127.0.0.1:{port}/health", process, log)
            yield Running(name, f"http://127.0.0.1:{port}/v1", process.pid)
        finally:
            end(process)


def _wait_until_healthy(
    name: str, url: str, process: "subprocess.Popen[bytes]", log: IO[bytes]
) -> None:
    end_s = time.monotonic() + _START_S
    while time.monotonic() < end_s and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    log.seek(0)
    last = log.read().decode(errors="replace").strip()[-_SHOWN_LOG_CHARACTERS:]
    how = "does not answer" if process.poll() is None else f"ended with code {process.returncode}"
    raise GlmError(f"{name} {how}; the last it wrote: {last}")


def end(process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> None:
    """Ask a server to end, and make it, with all processes of its group."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def processor_s_of_threads(pid: int) -> dict[int, tuple[str, float]]:
    """Name and processor time of each thread of a process, by its id."""
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    found = {}
    for folder in Path(f"/proc/{pid}/task").iterdir():
        try:
            text = (folder / "stat").read_text()
        except OSError:  # it has ended meanwhile
            continue
        found[int(folder.name)] = parse_stat(text, ticks_per_s)
    return found


def parse_stat(text: str, ticks_per_s: int) -> tuple[str, float]:
    """Name and seconds of user and system time in a line of /proc/*/stat."""
    name, rest = text.partition("(")[2].rsplit(")", 1)
    fields = rest.split()
    return name, (int(fields[11]) + int(fields[12])) / ticks_per_s
