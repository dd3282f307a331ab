"""bench_url.py against a server whose answers are known."""

from pathlib import Path

import bench_url
import pytest

from mindformers_glm.core.errors import GlmError
from tests.unit.bench.fake_openai_server import fake_server


def test_a_line_for_each_number_of_clients(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    with fake_server() as (url, bodies):
        words = [url, "--clients", "1,2", "--num_token_ids", "500", "--api_key_file", str(key)]
        assert bench_url.main(words) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split("|")[1].strip() for line in lines] == ["clients", "1", "2"]
    assert len(bodies) == 3
    assert {body["key"] for body in bodies} == {"Bearer secret"}
    assert {body["model"] for body in bodies} == {"m"}
    assert all(max(body["prompt"]) < 500 and len(body["prompt"]) >= 200 for body in bodies)


def test_failed_requests_are_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_server(behavior="busy") as (url, _):
        assert bench_url.main([url, "--clients", "1", "--model", "other"]) == 1


def test_where_nothing_answers_a_sentence_says_so() -> None:
    with pytest.raises(GlmError, match=r"names no model .* or --model NAME"):
        bench_url.main(["http://127.0.0.1:9/v1"])
    with pytest.raises(GlmError, match="Cannot read --api_key_file /nowhere"):
        bench_url.main(["http://127.0.0.1:9/v1", "--api_key_file", "/nowhere"])
