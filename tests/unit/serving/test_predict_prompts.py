"""What --predict_data may be."""

from pathlib import Path

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
