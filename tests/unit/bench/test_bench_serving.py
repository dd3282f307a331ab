"""The clocks and sums of bench_serving.py, against a server whose times are known."""

import os

import numpy as np
import pytest
from bench_serving import parse_arguments, parse_stat, processor_s_of_threads
from load_clients import LoadRequest, Seen, make_requests, run_clients, summarize

from tests.unit.bench.fake_openai_server import fake_server

_THREE = [LoadRequest([1, 2], 3), LoadRequest([1], 2), LoadRequest([5], 4)]


def test_what_clients_saw_is_put_together() -> None:
    seen = [
        Seen(1.0, [3.0, 4.0, 6.0], 3),
        Seen(0.5, [1.0, 5.0], 2),
        Seen(0.1, [0.2], 0, error="cut"),
    ]
    result = summarize(_THREE, seen)
    assert (result.num_requests, result.num_failed) == (3, 1)
    assert (result.num_new, result.num_prompt) == (5, 3)
    assert result.wall_s == 6.0 - 0.5
    assert result.tokens_per_s == 5 / 5.5
    np.testing.assert_allclose(result.first_s, [2.0, 0.5])
    np.testing.assert_allclose(result.between_s, [1.0, 2.0, 4.0])
    assert result.row() == ["0.9", "1250.0", "1985.0", "2000.0", "3960.0", "1"]


def test_nothing_that_came_is_told_as_nothing() -> None:
    result = summarize(_THREE[:1], [Seen(error="refused")])
    assert result.row() == ["0.0", "-", "-", "-", "-", "1"]


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


def test_a_server_without_its_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--gguf", "x"], ["--llama_cpp_server", "x"], ["--clients", "1,0"]):
        with pytest.raises(SystemExit):
            parse_arguments(["--checkpoint", "x", *wrong])
    assert "need each other" in capsys.readouterr().err
    assert parse_arguments(["--checkpoint", "x", "--clients", "2,3"]).clients == [2, 3]
