"""What --predict_data may be."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.serving.prompts import read_prompts


def prompt_file(folder: Path, content: bytes, name: str = "questions.txt") -> str:
    path = folder / name
    path.write_bytes(content)
    return str(path)


def test_several_values_are_several_prompts() -> None:
    assert read_prompts(["请介绍一下北京", "1+1=?"]) == ["请介绍一下北京", "1+1=?"]


def test_file_holds_one_prompt_a_line(tmp_path: Path) -> None:
    content = "\ufeff请介绍一下北京\r\n a b \nlast".encode()
    assert read_prompts([prompt_file(tmp_path, content)]) == ["请介绍一下北京", " a b ", "last"]


def test_existing_file_needs_no_suffix(tmp_path: Path) -> None:
    assert read_prompts([prompt_file(tmp_path, b"a\nb\n", name="questions")]) == ["a", "b"]


def test_backslash_n_is_a_new_line(tmp_path: Path) -> None:
    assert read_prompts([r"a\nb"]) == ["a\nb"]
    assert read_prompts([prompt_file(tmp_path, rb"a\nb")]) == ["a\nb"]


def test_blank_lines_are_skipped_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_prompts([prompt_file(tmp_path, b"a\n\nb\n \n")]) == ["a", "b"]
    assert "skipped 2 blank lines" in capsys.readouterr().err


def test_only_new_lines_end_a_prompt(tmp_path: Path) -> None:
    content = "a\u2028b\fc\n".encode()
    assert read_prompts([prompt_file(tmp_path, content)]) == ["a\u2028b\fc"]


def test_long_prompt_is_no_file_name() -> None:
    assert read_prompts(["a" * 100_000]) == ["a" * 100_000]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"\n \n", "is empty"), (b"\xff\xfe", r"not UTF-8 text \(byte 0\)")],
)
def test_file_without_text_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_prompts([prompt_file(tmp_path, content)])


@pytest.mark.parametrize("name", ["nothere.txt", "nothere.TXT"])
def test_missing_txt_file_is_an_error_not_a_prompt(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} does not exist"):
        read_prompts([name])


def test_folder_named_like_a_prompt_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "questions.txt").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        read_prompts([str(tmp_path / "questions.txt")])


def test_name_of_a_folder_is_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_prompts(["docs"]) == ["docs"]


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "There is no prompt"), ([""], "empty prompt"), (["\udcff"], "not UTF-8")],
)
def test_no_prompt_is_an_error(values: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_prompts(values)


def test_stdin_gives_prompts_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("你好\nb\\nc\n".encode())))
    assert read_prompts(["a", "-", "d"]) == ["a", "你好", "b\nc", "d"]


@pytest.mark.parametrize(
    ("values", "content", "has_stdin", "message"),
    [
        (["-", "-"], b"a", True, "names stdin"),
        (["-"], b"", True, "Stdin is empty"),
        (["-"], b"\xff", True, "Stdin is not UTF-8 text"),
        (["-"], b"a", False, "processes of a launched job have none"),
    ],
)
def test_stdin_that_cannot_be_read_is_an_error(
    values: list[str],
    content: bytes,
    has_stdin: bool,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    with pytest.raises(ConfigError, match=message):
        read_prompts(values, has_stdin=has_stdin)


@pytest.mark.parametrize(
    "value",
    [
        "questions.json",
        "my questions.jsonl",
        "QUESTIONS.JSONL",
        "/nothere/questions",
        "./questions",
        "../questions",
        "~/nothere-questions",
        "/help",
    ],
)
def test_what_looks_like_a_path_and_is_not_there_is_an_error(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        read_prompts([value])


@pytest.mark.parametrize(
    "value",
    [
        "/ is the root folder, what is /etc?",
        "./a or ../b?",
        "~ what?",
        "...",
        ".json is what?",
        "~user",
        "/\u3000什么",  # a full-width blank
        "../a\nb",
    ],
)
def test_what_only_begins_like_a_path_is_a_prompt(value: str) -> None:
    assert read_prompts([value]) == [value]


def test_folder_written_like_a_path_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        read_prompts([str(tmp_path)])


TALK = [{"role": "system", "content": "short"}, {"role": "user", "content": "北京"}]


def test_json_lines_hold_texts_and_conversations(tmp_path: Path) -> None:
    lines: list[Any] = [
        {"prompt": "a\\nb\n\U0001f642"},
        {"messages": TALK},
        {"prompt": "x", "tools": None},
    ]
    content = "\n\n".join(json.dumps(line) for line in lines).encode()
    expected = ["a\\nb\n\U0001f642", TALK, "x"]
    assert read_prompts([prompt_file(tmp_path, content, "q.jsonl")]) == expected
    assert read_prompts([prompt_file(tmp_path, content, "questions")]) == expected  # a pipe, stdin
    listed = json.dumps([*lines, "text"]).encode()
    assert read_prompts([prompt_file(tmp_path, listed, "q.json")]) == [*expected, "text"]


def test_lines_of_a_txt_file_are_texts_whatever_they_hold(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "a"})
    assert read_prompts([prompt_file(tmp_path, line.encode())]) == [line]


def test_members_that_are_not_read_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = prompt_file(tmp_path, b'{"prompt": "a", "id": 7, "category": "x"}', "q.jsonl")
    assert read_prompts([file]) == ["a"]
    assert "only prompt and messages are read, not category, id" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a"', "Line 2 of .* is not valid JSON"),
        ("[1]", "Line 2 of .* is a list"),
        ("{}", "neither prompt nor messages"),
        ('{"prompt": "a", "messages": [{}]}', "both prompt and messages"),
        ('{"prompt": " "}', "a prompt that is no text or empty"),
        ('{"prompt": ["a"]}', "a prompt that is no text or empty"),
        ('{"messages": "a"}', "must have messages such as"),
        ('{"messages": []}', "must have messages such as"),
        ('{"prompt": "a", "temperature": 0.5}', "sets temperature: that is not read"),
        ('{"messages": [{}], "tools": [{}]}', "sets tools: that is not read"),
        ('{"prompt": "\\ud800"}', "a character that UTF-8 has not"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
def test_bad_json_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    file = prompt_file(tmp_path, f'{{"prompt": "good"}}\n{line}\n'.encode(), "q.jsonl")
    with pytest.raises(ConfigError, match=message):
        read_prompts([file])


@pytest.mark.parametrize("content", ["[]", "{}", '"a"', "[[1]]", "[", "[{}]"])
def test_bad_json_lists_are_refused(content: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"q\.json"):
        read_prompts([prompt_file(tmp_path, content.encode(), "q.json")])
