"""One served glm4-mini for all clients: started as a user starts it, ended by SIGTERM."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
API_KEY = "clients-key"


@dataclass(frozen=True)
class Server:
    """A served model: where it is, and its process."""

    url: str
    process: subprocess.Popen[str]


def start_server(*arguments: str, cwd: Path) -> Server:
    """Start `serve` on a free port and wait until it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mindformers_glm", "serve", "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)},
    )
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if match := re.search(r"at (https?://\S+)/v1", line):
            # Nobody may stop reading, or the server's log would block it.
            threading.Thread(target=process.stderr.read, daemon=True).start()
            return Server(match[1], process)
    raise AssertionError("".join(lines))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The shipped checkpoint with a key; any name of a model will do."""
    server = start_server(
        "--api_key", API_KEY, "--any_model_name", "True", cwd=tmp_path_factory.mktemp("served")
    )
    yield server
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0


@pytest.fixture(scope="session")
def url(server: Server) -> str:
    return server.url
