"""The clocks and sums of bench_serving.py, against a server whose times are known."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench_serving
import numpy as np
import pytest
from bench_serving import compare, list_servers, parse_arguments, shares_of_server, take_turns
from load_clients import HEAD, LoadRequest, Result, Seen, make_requests, run_clients, summarize
from peer_servers import (
    LlamaCppServer,
    OurServer,
    Place,
    Running,
    parse_stat,
    processor_s_of_threads,
)

from mindformers_glm.core.errors import GlmError
from tests.conftest import MINI
from tests.unit.bench.fake_openai_server import fake_server

_THREE = [LoadRequest([1, 2], 3), LoadRequest([1], 2), LoadRequest([5], 4)]


@pytest.fixture
def binary(tmp_path: Path) -> str:
    """A program that takes llama-server's options."""
    path = tmp_path / "llama-server"
    script = Path(__file__).with_name("fake_openai_server.py")
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    path.chmod(0o755)
    return str(path)


def test_what_clients_saw_is_put_together() -> None:
    seen = [
        Seen(1.0, [3.0, 4.0, 6.0], 3),
        Seen(0.5, [1.0, 5.0], 2),
        Seen(0.1, [0.2], 0, error="lost"),
    ]
    result = summarize(_THREE, seen)
    assert (result.num_requests, result.num_failed, result.num_cut) == (3, 1, 0)
    assert (result.num_new, result.num_prompt) == (5, 3)
    assert result.wall_s == 6.0 - 0.5
    assert result.tokens_per_s == 5 / 5.5
    np.testing.assert_allclose(result.first_s, [2.0, 0.5])
    np.testing.assert_allclose(result.per_token_s, [1.5, 4.0])
    np.testing.assert_allclose(result.between_s, [1.0, 2.0, 4.0])
    times = ["1250.0", "1985.0", "2750.0", "3975.0", "2000.0", "3960.0"]
    assert result.row() == ["0.9", *times, "1", "0"]
    assert len(result.row()) == len(HEAD)


def test_what_came_before_the_time_was_over_counts() -> None:
    seen = [Seen(0.0, [3.0, 4.0, 6.0], 3), Seen(0.0, [1.0, 5.0], is_cut=True), Seen(is_cut=True)]
    result = summarize(_THREE, seen)
    assert (result.num_failed, result.num_cut) == (0, 2)
    assert (result.num_new, result.num_prompt) == (5, 3)
    np.testing.assert_allclose(result.first_s, [3.0, 1.0])
    np.testing.assert_allclose(result.per_token_s, [1.5])


def test_nothing_that_came_is_told_as_nothing() -> None:
    result = summarize(_THREE[:1], [Seen(error="refused")])
    assert result.row() == ["0.0", *["-"] * 6, "1", "0"]


def test_clients_hang_up_when_the_time_is_over() -> None:
    requests = [LoadRequest([1], 1_000)] * 3
    with fake_server(between_s=0.01) as (url, _):
        result = run_clients(url, "m", requests, 2, most_s=0.4)
    assert (result.num_failed, result.num_cut) == (0, 3)
    assert 0 < result.num_new < 100


def test_times_are_those_of_the_server() -> None:
    requests = [LoadRequest([1, 2, 3], 5)] * 4
    with fake_server(first_s=0.2, between_s=0.05) as (url, bodies):
        result = run_clients(url, "m", requests, 2, api_key="k")
    assert (result.num_failed, result.num_new, result.num_prompt) == (0, 20, 12)
    # Two rounds of two; a busy machine only makes it longer.
    assert 2 * (0.2 + 4 * 0.05) <= result.wall_s < 5
    assert 0.2 <= result.first_s.min() < 2
    assert len(result.between_s) == 16
    assert 0.04 < np.median(result.between_s) < 1
    assert bodies[0]["key"] == "Bearer k"
    assert bodies[0]["prompt"] == [1, 2, 3]
    assert (bodies[0]["max_tokens"], bodies[0]["ignore_eos"]) == (5, True)


@pytest.mark.parametrize("behavior", ["busy", "cut", "short", "error"])
def test_an_answer_that_is_not_whole_counts_nowhere_else(behavior: str) -> None:
    with fake_server(behavior=behavior) as (url, _):
        result = run_clients(url, "m", _THREE, 3)
    assert (result.num_failed, result.num_new, len(result.first_s)) == (3, 0, 0)


def test_events_count_where_no_usage_is_told() -> None:
    with fake_server(behavior="no usage") as (url, _):
        assert run_clients(url, "m", _THREE, 1).num_new == 9


def test_lengths_are_in_their_ranges_and_the_beginning_is_shared() -> None:
    requests = make_requests(3, 200, 1_000, (20, 30), (4, 6), num_shared=15)
    assert {len(request.prompt) for request in requests} == set(range(20, 31))
    assert {request.num_new for request in requests} == {4, 5, 6}
    assert len({tuple(request.prompt[:15]) for request in requests}) == 1
    assert len({tuple(request.prompt) for request in requests}) == 200
    assert requests == make_requests(3, 200, 1_000, (20, 30), (4, 6), num_shared=15)
    assert requests != make_requests(4, 200, 1_000, (20, 30), (4, 6), num_shared=15)


def test_processor_time_of_threads_is_read() -> None:
    fields = " ".join(str(number) for number in range(4, 60))
    assert parse_stat(f"12 (a (b) c) S {fields}", 10) == ("a (b) c", (14 + 15) / 10)
    found = processor_s_of_threads(os.getpid())
    assert found[os.getpid()][1] > 0


def test_options_that_need_another_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    wrong: list[tuple[list[str], str]] = [
        (["--llama_cpp_models", "x"], "need each other"),
        (["--llama_cpp_server", "x"], "need each other"),
        (["--clients", "1,0"], "expected 1 or more"),
        (["--formats", "int3"], "takes bf16, int8, got 'int3'"),
        (["--settings", "x"], "expected NAME=VALUE"),
    ]
    for arguments, sentence in wrong:
        with pytest.raises(SystemExit):
            parse_arguments(["--checkpoint", "x", *arguments])
        assert sentence in capsys.readouterr().err
    assert parse_arguments(["--checkpoint", "x", "--clients", "2,3"]).clients == [2, 3]


def test_servers_of_a_format_are_those_that_are_here() -> None:
    options = parse_arguments(["--checkpoint", "/c", "--settings", "a=b"])
    assert [one.name for one in list_servers("int8", options)] == ["ours int8 a=b"]
    peers = ["--llama_cpp_server", "b", "--llama_cpp_models", "/g", "--vllm_python", "p"]
    options = parse_arguments(["--checkpoint", "/c", *peers])
    ours, llama_cpp, vllm = list_servers("bf16", options)
    assert (ours.name, llama_cpp.name, vllm.name) == ("ours bf16", "llama.cpp BF16", "vLLM bf16")
    assert isinstance(llama_cpp, LlamaCppServer)
    assert llama_cpp.gguf == "/g/BF16.gguf"
    ours, _ = list_servers("int8", options)
    assert isinstance(ours, OurServer)
    assert ours.settings == ("quantization=w8a8_dynamic",)


def test_servers_take_turns_and_are_stopped(
    binary: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = []

    def note_pids(running: Sequence[Running], *rest: Any) -> dict[str, list[Result]]:
        pids.extend(one.pid for one in running)
        return take_turns(running, *rest)

    monkeypatch.setattr(bench_serving, "take_turns", note_pids)
    monkeypatch.setattr(bench_serving, "NEW_LENS", (3, 5))
    servers = [LlamaCppServer("first", binary, "a"), LlamaCppServer("second", binary, "b")]
    options = parse_arguments(["--checkpoint", "x", "--clients", "1,2", "--rounds", "2"])
    found = compare(servers, Place(1, 2, 1_300), options, vocab_size=1_000)
    assert [(run["server"], run["clients"], len(run["rounds"])) for run in found] == [
        (name, clients, 2) for clients in (1, 2) for name in ("first", "second")
    ]
    assert not any(one["num_failed"] for run in found for one in run["rounds"])
    assert capsys.readouterr().out.count("| second |") == 4
    assert len(set(pids)) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_server_that_does_not_start_leaves_its_last_words(binary: str) -> None:
    with (
        pytest.raises(GlmError, match=r"peer ended with code 1; .*: the model is broken"),
        LlamaCppServer("peer", binary, "broken").start(Place(1, 1, 100)),
    ):
        pass
    with (
        pytest.raises(GlmError, match="peer cannot be started by /no/binary"),
        LlamaCppServer("peer", "/no/binary", "a").start(Place(1, 1, 100)),
    ):
        pass


def test_another_server_that_does_not_start_is_left_out(
    binary: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_serving, "NEW_LENS", (3, 5))
    servers = [LlamaCppServer("ours", binary, "a"), LlamaCppServer("other", binary, "broken")]
    options = parse_arguments(["--checkpoint", "x", "--clients", "1"])
    found = compare(servers, Place(1, 1, 1_300), options, vocab_size=1_000)
    assert [(run["server"], len(run["rounds"])) for run in found] == [("other", 0), ("ours", 1)]
    assert "left out: other ended with code 1" in capsys.readouterr().out
    with pytest.raises(GlmError, match="ours ended"):
        compare([LlamaCppServer("ours", binary, "broken")], Place(1, 1, 1_300), options, 1_000)


def test_servers_end_with_a_benchmark_that_is_terminated(binary: str) -> None:
    script = (
        "import sys, time\n"
        f"sys.path += {sys.path!r}\n"
        "from machine import run_main\n"
        "from peer_servers import LlamaCppServer, Place\n"
        "def main():\n"
        f"    with LlamaCppServer('peer', {binary!r}, 'a').start(Place(1, 1, 100)) as one:\n"
        "        print(one.pid, flush=True)\n"
        "        time.sleep(60)\n"
        "run_main(main)\n"
    )
    bench = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert bench.stdout is not None
    pid = int(bench.stdout.readline())
    bench.terminate()
    assert bench.wait(60) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_time_of_the_event_loop_is_told_apart() -> None:
    before = {7: ("python", 1.0), 8: ("python", 2.0)}
    after = {7: ("python", 1.5), 8: ("python", 6.0), 9: ("python", 2.0)}
    assert shares_of_server(before, after, 7, 2) == {"loop_s": 0.5, "rest_s": 3.0}


def test_a_request_that_fails_with_ours_alone_is_told_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "all.json"
    lost = summarize(_THREE[:1], [Seen(error="refused")])
    entry = {"server": "ours alone", "clients": 1, "rounds": [lost.as_json()]}
    monkeypatch.setattr(bench_serving, "measure_own", lambda *_: entry)
    arguments = ["--checkpoint", str(MINI), "--parts", "own", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["bench_serving.py", *arguments])
    assert bench_serving.main() == 1
    assert json.loads(path.read_text())[0]["rounds"][0]["num_failed"] == 1
