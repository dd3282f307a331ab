"""predict with a generator that needs no model."""

import ast
import os
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
    monkeypatch.setattr(os, "replace", lambda *_, **__: 1 / 0)
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
