"""What the three kinds of result file hold, and when they are written."""

import ast
import json
import os
from pathlib import Path

import pytest

from mindformers_glm.core.errors import GlmError
from mindformers_glm.serving.answer_file import AnswerFile
from mindformers_glm.serving.result_file import append_text
from tests.unit.serving.echo import answer_to


def test_json_entries_tell_all_about_an_answer(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "你好"}]
    for name in ("a.json", "a.jsonl", "A.JSONL"):
        file = AnswerFile(tmp_path / name)
        file.add(1, "bad", answer_to("bad"))
        file.add(0, talk, answer_to("long"))
        file.close()
    expected = [
        {
            "index": 0,
            "messages": talk,
            "text": "LONG",
            "finish_reason": "length",
            "prompt_tokens": 1,
            "completion_tokens": 2,
            "error": None,
        },
        {
            "index": 1,
            "prompt": "bad",
            "text": "",
            "finish_reason": "error",
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "error": "too long",
        },
    ]
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == expected
    for name in ("a.jsonl", "A.JSONL"):
        lines = (tmp_path / name).read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == expected


def test_line_separators_of_unicode_do_not_split_a_line(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "a.jsonl")
    file.add(0, "a\u2028b\nc", answer_to("\u2029\r\n\x85"))
    file.close()
    (line,) = (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()
    assert (json.loads(line)["prompt"], json.loads(line)["text"]) == (
        "a\u2028b\nc",
        "\u2029\r\n\x85",
    )


def test_a_whole_file_is_written_less_often_when_that_takes_long(tmp_path: Path) -> None:
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += 0.5  # writing takes as long
        return now_s

    file = AnswerFile(tmp_path / "a.txt", clock)
    file.add(0, "a", answer_to("a"))
    assert len(ast.literal_eval((tmp_path / "a.txt").read_text())) == 1
    for index in range(1, 40):
        file.add(index, "b", answer_to("b"))
    assert len(ast.literal_eval((tmp_path / "a.txt").read_text())) == 1  # 20 of 25 seconds
    for index in range(40, 60):
        file.add(index, "c", answer_to("c"))
    assert 40 < len(ast.literal_eval((tmp_path / "a.txt").read_text())) < 60
    file.close()
    assert len(ast.literal_eval((tmp_path / "a.txt").read_text())) == 60


def test_file_that_could_not_be_written_meanwhile_is_whole_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = AnswerFile(tmp_path / "a.jsonl")
    file.add(2, "a", answer_to("a"))
    with monkeypatch.context() as patch:
        patch.setattr("mindformers_glm.serving.answer_file.append_text", raise_disk_full)
        file.add(0, "b", answer_to("b"))
    file.add(1, "c", answer_to("c"))
    file.close()
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == [0, 1, 2]


def raise_disk_full(path: Path, text: str) -> None:
    raise GlmError("Cannot write save_file: No space left on device.")


def test_line_that_does_not_fit_on_the_disk_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("first\n")
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, content: write(file, content[:3]))
    with pytest.raises(GlmError, match="No space left"):
        append_text(path, "second\n")
    assert path.read_text() == "first\n"
