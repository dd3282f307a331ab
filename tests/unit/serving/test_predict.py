"""predict with a generator that needs no model."""

import ast
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mindformers_glm.config.run_config import RunConfig, load_run_config
from mindformers_glm.core.errors import CheckpointError, ConfigError, GlmError
from mindformers_glm.engine.answer import Answer, ListView
from mindformers_glm.engine.request_output import FinishReason, RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.serving.predict import predict
from mindformers_glm.serving.result_file import check_place, write_atomically
from tests.unit.config.predict_arguments import predict_arguments


class Echo:
    """Answers with the prompt in capitals; fails on "bad", is cut short on "long"."""

    def __init__(self) -> None:
        self.params = SamplingParams()

    def generate(self, prompts: Sequence[str], params: SamplingParams) -> list[RequestOutput]:
        self.params = params
        return [self._answer(str(number), prompt) for number, prompt in enumerate(prompts)]

    def _answer(self, request_id: str, prompt: str) -> RequestOutput:
        if prompt == "bad":
            return RequestOutput.refused(request_id, [], "too long")
        reason: FinishReason = "length" if prompt == "long" else "stop"
        answer = Answer(ListView([2]), ListView([prompt.upper()]), ListView([]))
        return RequestOutput(request_id, [1], answer, [], "", reason)


def config_for(folder: Path, *prompts: str, options: Sequence[str] = ()) -> RunConfig:
    argv = ["--pretrained_model_dir", str(folder), "--save_file", str(folder / "result.txt")]
    return load_run_config(
        predict_arguments(*argv, *options, "--predict_data", *prompts), environ={}
    )


@pytest.fixture(autouse=True)
def _environment_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mindformers_glm.serving.predict.prepare_environment", lambda config: None)


def test_answers_are_printed_one_a_line_and_written_in_upstreams_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(config_for(tmp_path, "北京", "it's\\nme"), lambda _: Echo()) == 0
    expected = [{"text_generation_text": ["北京"]}, {"text_generation_text": ["IT'S\nME"]}]
    assert [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines()] == expected
    assert (tmp_path / "result.txt").read_text(encoding="utf-8") == str(expected)


def test_failed_prompt_keeps_its_place_and_the_others_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(config_for(tmp_path, "a", "bad", "c"), lambda _: Echo()) == 1
    assert ast.literal_eval((tmp_path / "result.txt").read_text()) == [
        {"text_generation_text": ["A"]},
        {"text_generation_text": [""], "error": "too long"},
        {"text_generation_text": ["C"]},
    ]
    assert "prompt 2 of 3 failed: too long" in capsys.readouterr().err


def test_answer_that_was_cut_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(config_for(tmp_path, "a", "long"), lambda _: Echo())
    assert "1 of 2 answers were cut at the length limit (prompt 2)" in capsys.readouterr().err


def test_generation_settings_of_the_command_line_reach_the_generator(tmp_path: Path) -> None:
    echo = Echo()
    options = ["--top_k", "3", "--do_sample", "False", "--stop", "x", "y"]
    predict(config_for(tmp_path, "a", options=options), lambda _: echo)
    assert echo.params == SamplingParams(top_k=3, do_sample=False, stop=("x", "y"))


def test_stop_texts_know_the_escape_for_a_new_line(tmp_path: Path) -> None:
    echo = Echo()
    predict(config_for(tmp_path, "a", options=["--stop", "\\n"]), lambda _: echo)
    assert echo.params.stop == ("\n",)


def must_not_load(config: RunConfig) -> Echo:
    raise AssertionError("the model was loaded although the input is wrong")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--save_file", "nothere/result.txt"], "does not exist: create it first"),
        (["--save_file", "."], "is a folder"),
        (["--save_file", "/dev/null"], "is a device or pipe"),
        (["--top_p", "1.5"], "top_p must be"),
        (["--predict_data", "nothere.txt"], "nothere.txt does not exist"),
    ],
)
def test_bad_input_is_found_before_the_model_is_loaded(
    tmp_path: Path, options: list[str], message: str
) -> None:
    argv = ["--pretrained_model_dir", str(tmp_path), "--predict_data", "a", *options]
    config = load_run_config(predict_arguments(*argv), environ={})
    with pytest.raises(ConfigError, match=message):
        predict(config, must_not_load)
    assert list(tmp_path.iterdir()) == []


def test_shipped_checkpoint_that_is_missing_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "mindformers_glm.config.run_config.files", lambda package: tmp_path / "nothere"
    )
    config = load_run_config(predict_arguments("--predict_data", "a"), environ={})
    with pytest.raises(CheckpointError, match="give your own with --pretrained_model_dir"):
        predict(config, must_not_load)


def test_nothing_is_left_behind_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "result.txt"
    path.write_text("old")
    monkeypatch.setattr(Path, "replace", lambda self, target: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.txt"]


def test_checking_the_place_leaves_no_file(tmp_path: Path) -> None:
    check_place(tmp_path / "result.txt")
    assert list(tmp_path.iterdir()) == []


def test_result_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "result.txt"
    link.symlink_to(tmp_path / "real" / "result.txt")
    write_atomically(link, "北京")
    assert link.is_symlink()
    assert (tmp_path / "real" / "result.txt").read_text(encoding="utf-8") == "北京"


def test_links_on_the_way_are_followed_as_the_system_does(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "to_b").symlink_to("a/b")
    (tmp_path / "a" / "b" / "up").symlink_to("../result.txt")
    for name in ("to_b/../plain.txt", "to_b/up", "./a/../a/./second.txt"):
        write_atomically(tmp_path / name, name)
        assert (tmp_path / name).read_text() == name
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "b",
        "plain.txt",
        "result.txt",
        "second.txt",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make links of other users")
@pytest.mark.parametrize("place", ["result.txt", "folder", "second"])
def test_a_link_of_another_user_is_not_followed(tmp_path: Path, place: str) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "result.txt").write_text("kept")
    (tmp_path / "result.txt").symlink_to("own/result.txt")
    (tmp_path / "folder").symlink_to("own")
    (tmp_path / "second").symlink_to("result.txt")
    os.lchown(tmp_path / ("result.txt" if place == "second" else place), 12345, 12345)
    path = tmp_path / place / ("result.txt" if place == "folder" else "")
    for use in (check_place, lambda path: write_atomically(path, "new")):
        with pytest.raises(ConfigError, match="a link of another user, and is not followed: give"):
            use(path)
    assert (tmp_path / "own" / "result.txt").read_text() == "kept"


def test_a_link_that_leads_to_itself_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "result.txt").symlink_to("result.txt")
    with pytest.raises(ConfigError, match="Too many levels of symbolic links"):
        check_place(tmp_path / "result.txt")


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o660])
def test_a_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "result.txt"
    path.write_text("old")
    path.chmod(mode)
    write_atomically(path, "new")
    assert path.stat().st_mode & 0o7777 == mode
    assert path.read_text() == "new"


def test_a_new_file_and_one_in_place_of_another_users_are_read_by_the_group(tmp_path: Path) -> None:
    write_atomically(tmp_path / "new.txt", "x")
    assert (tmp_path / "new.txt").stat().st_mode & 0o7777 == 0o640
    if os.geteuid() == 0:
        (tmp_path / "other.txt").write_text("old")
        (tmp_path / "other.txt").chmod(0o666)
        os.chown(tmp_path / "other.txt", 12345, 12345)
        write_atomically(tmp_path / "other.txt", "x")
        assert (tmp_path / "other.txt").stat().st_mode & 0o7777 == 0o640


def test_a_second_run_that_writes_the_same_file_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link.txt").symlink_to("result.txt")
    code = (
        "import sys, pathlib; from mindformers_glm.serving.result_file import check_place\n"
        "check_place(pathlib.Path(sys.argv[1])); print(flush=True); input()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "result.txt")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert first.stdout is not None
    first.stdout.readline()
    for name in ("result.txt", "link.txt", "other.txt"):
        check_place(tmp_path / name)
        told = f"another run writes to {tmp_path / name} too" in capsys.readouterr().err
        assert told is (name != "other.txt")
    first.communicate(b"\n")
    for _ in range(2):  # its claim ended with it, and a run is no rival of itself
        check_place(tmp_path / "result.txt")
    assert capsys.readouterr().err == ""


def test_answers_are_printed_even_if_the_file_cannot_be_written_in_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, text: str) -> None:
        raise GlmError("Cannot write save_file: No space left on device.")

    monkeypatch.setattr("mindformers_glm.serving.predict.write_atomically", fail)
    with pytest.raises(GlmError, match="No space left"):
        predict(config_for(tmp_path, "a"), lambda _: Echo())
    assert capsys.readouterr().out == "{'text_generation_text': ['A']}\n"


def test_the_file_of_the_prompts_is_not_overwritten(tmp_path: Path) -> None:
    prompts = tmp_path / "result.txt"
    prompts.write_text("a\n")
    with pytest.raises(ConfigError, match="holds the prompts"):
        predict(config_for(tmp_path, str(prompts)), lambda _: Echo())
    assert prompts.read_text() == "a\n"
