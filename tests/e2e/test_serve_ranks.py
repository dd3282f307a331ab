"""A server and a chat on two ranks: answers, signals, and the end of a rank."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("llguidance")

import fuzz_server
from raw_http import ask
from server_process import Server, serve
from server_requests import COMPLETIONS, Said, make_requests

from tests.conftest import MINI
from tests.e2e.run_process import REPO
from tests.e2e.test_chat_command import _READS, _Terminal

pytestmark = [
    pytest.mark.tp,
    pytest.mark.weights,
    pytest.mark.skipif(not MINI.is_dir(), reason="the shipped checkpoint is not there"),
]
_NUM_RANKS = 2
_KNOWN = make_requests(seed=1, count=9)
_SETTINGS = ("--access_log", "False")


def _options(*parts: str) -> list[str]:
    return ["--ranks", str(_NUM_RANKS), "--clients", "8", "--parts", ",".join(parts)]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    yield
    patch.undo()


@pytest.fixture(scope="module")
def expected() -> list[Said]:
    """What one process says; it also ends in order with its log on a full disk."""
    found = fuzz_server.Found()
    options = fuzz_server.parse_arguments(["--parts", "disk"])
    with serve(str(MINI), *fuzz_server.server_options(options), log_device="/dev/full") as server:
        said = asyncio.run(fuzz_server.learn_answers(server.port, _KNOWN, found))
        assert server.end() == 0
    assert found.faults == []
    return said


def test_two_ranks_answer_as_one_process_and_end_after_their_answers(
    expected: list[Said],
) -> None:
    options = fuzz_server.parse_arguments([*_options("end"), "--minutes", "0.03"])
    found = fuzz_server.Found()

    async def run(server: Server) -> None:
        num_free = (await server.idle_counts())["glm:kv_cache_free_blocks"]
        said = await fuzz_server.learn_answers(server.port, _KNOWN, found)
        assert said == expected
        storm = fuzz_server.Storm(server.port, _KNOWN, expected, found, seed=0)
        await fuzz_server.run_storm(server, storm, options, found)
        await fuzz_server.run_burst(server, 100, found)
        await fuzz_server.check_blocks(server, num_free, found, "the storm")
        await fuzz_server.run_end(server, options, found)

    with serve(str(MINI), *fuzz_server.server_options(options), *_SETTINGS) as server:
        asyncio.run(run(server))
    assert found.faults == []


@pytest.mark.parametrize("rank", [0, 1])
def test_the_end_of_a_rank_is_told_to_clients_and_ends_the_job(rank: int) -> None:
    options = fuzz_server.parse_arguments(_options("rank"))
    found = fuzz_server.Found()
    with serve(str(MINI), *fuzz_server.server_options(options), *_SETTINGS) as server:
        if rank == 1:
            asyncio.run(fuzz_server.run_rank(server, options, found))
        else:
            body = {"prompt": [11], "max_tokens": 3}
            assert asyncio.run(ask(server.port, COMPLETIONS, body)).status == 200
            server.find_rank(0).kill()
            assert server.wait() == 1
        text = server.text()
    assert found.faults == []
    assert f"error: Rank {rank} was killed by SIGKILL" in text
    assert "Traceback" not in text


def test_on_a_terminal_rank_0_takes_lines_and_ctrl_c(tmp_path: Path) -> None:
    terminal = _Terminal(
        *(str(REPO / "main.py"), "--mode", "cli_demo", "--tp_size", "2"),
        *("--min_new_tokens", "1900", "--max_new_tokens", "1900"),
        folder=tmp_path,
    )
    terminal.wait_for("Ctrl-D ends")
    terminal.wait_for(_READS)
    terminal.type("你好\r")
    terminal.wait_for("我是")
    terminal.type("\x03")
    terminal.wait_for("stopped, ")
    terminal.wait_for(_READS)
    terminal.type("\x04")
    assert terminal.process.wait(30) == 0


def test_main_takes_part_in_torchruns_job(tmp_path: Path) -> None:
    with subprocess.Popen(["true"]) as done:
        port = str(20_000 + done.pid % 10_000)
    environ = os.environ | {"PYTHONPATH": str(REPO), "WORLD_SIZE": "2", "MASTER_PORT": port}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(REPO / "main.py"), "--mode", "cli_demo", "--model_path", MINI],
            env=environ | {"RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "localhost"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
        )
        for rank in ("0", "1")
    ]
    lines = f"请介绍一下北京\n/save {tmp_path}/saved.json\n"
    answer, others = (rank.communicate(lines, timeout=120)[0] for rank in ranks)
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert answer.startswith("北京是中国的首都")
    assert "北京" not in others
    assert len(json.loads((tmp_path / "saved.json").read_text(encoding="utf-8"))) == 2
