"""predict with a generator that needs no model."""

import ast
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mindformers_glm.config.run_config import RunConfig, load_run_config
from mindformers_glm.core.errors import CheckpointError, ConfigError, GlmError
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.serving.predict import predict
from mindformers_glm.serving.result_file import check_place, write_atomically
from tests.unit.config.predict_arguments import predict_arguments
from tests.unit.serving.echo import Echo, config_for

REPO = Path(__file__).parents[3]


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
        (["--save_file", "a" * 236], "File name too long"),  # with what writing adds to it
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


def test_interrupted_check_of_the_place_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close_and_interrupt(file: int) -> None:
        close(file)
        signal.raise_signal(signal.SIGINT)

    close, before = os.close, signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "close", close_and_interrupt)
            with pytest.raises(KeyboardInterrupt):
                check_place(tmp_path / "result.txt")
    finally:
        signal.signal(signal.SIGINT, before)
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

    monkeypatch.setattr("mindformers_glm.serving.answer_file.write_atomically", fail)
    with pytest.raises(GlmError, match="No space left"):
        predict(config_for(tmp_path, "a"), lambda _: Echo())
    assert capsys.readouterr().out == "{'text_generation_text': ['A']}\n"


def test_the_file_of_the_prompts_is_not_overwritten(tmp_path: Path) -> None:
    prompts = tmp_path / "result.txt"
    prompts.write_text("a\n")
    with pytest.raises(ConfigError, match="holds the prompts"):
        predict(config_for(tmp_path, str(prompts)), lambda _: Echo())
    assert prompts.read_text() == "a\n"


FIFTY = [f"question {number}" for number in range(50)]


@pytest.mark.parametrize("name", ["result.txt", "result.jsonl", "result.json"])
@pytest.mark.parametrize("seed", range(20))
def test_interrupted_batch_leaves_just_what_is_finished_in_the_file_and_on_stdout(
    name: str, seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order = random.Random(seed).sample(range(50), 50)
    num_finished = random.Random(seed).randrange(50)

    def interrupt(count: int) -> None:
        if count == num_finished:
            raise KeyboardInterrupt

    file = tmp_path / name
    config = config_for(tmp_path, *FIFTY, options=["--save_file", str(file)])
    with pytest.raises(KeyboardInterrupt):
        predict(config, lambda _: Echo(order, interrupt))
    finished = [FIFTY[place].upper() for place in sorted(order[:num_finished])]
    printed = capsys.readouterr()
    assert read_texts(file) == finished
    assert [ast.literal_eval(line) for line in printed.out.splitlines()] == [
        {"text_generation_text": [text]} for text in finished
    ]
    assert f"{num_finished} of 50 answers are finished and saved; missing: prompt" in printed.err


def read_texts(file: Path) -> list[str]:
    """The answers in a result file, in its order, read as its users would read it."""
    if not file.exists():
        return []
    content = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        return [json.loads(line)["text"] for line in content.splitlines()]
    if file.suffix == ".json":
        return [entry["text"] for entry in json.loads(content)]
    return [text for entry in ast.literal_eval(content) for text in entry["text_generation_text"]]


def test_failure_in_the_middle_loses_nothing_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError):
        predict(
            config_for(tmp_path, "a", "b", "c", "d"),
            lambda _: Echo([2, 0, 1, 3], lambda count: 1 / (2 - count)),
        )
    assert read_texts(tmp_path / "result.txt") == ["A", "C"]
    printed = capsys.readouterr()
    assert printed.out.count("text_generation_text") == 2
    assert "2 of 4 answers are finished and saved; missing: prompt 2, 4" in printed.err


def test_file_is_whole_and_in_order_after_every_answer(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    order = [1, 0, 3, 2]
    predict(
        config_for(tmp_path, *"abcd", options=["--save_file", str(tmp_path / "result.jsonl")]),
        lambda _: Echo(order, lambda count: seen.append(read_texts(tmp_path / "result.jsonl"))),
    )
    assert seen == [[], ["B"], ["B", "A"], ["B", "A", "D"]]  # as they came
    assert read_texts(tmp_path / "result.jsonl") == ["A", "B", "C", "D"]


def test_old_result_stays_until_something_is_finished(tmp_path: Path) -> None:
    (tmp_path / "result.txt").write_text("old")
    with pytest.raises(ZeroDivisionError):
        predict(config_for(tmp_path, "a", "b"), lambda _: Echo(before_step=lambda count: 1 / 0))
    assert (tmp_path / "result.txt").read_text() == "old"


def test_missing_prompts_are_named_by_ranges(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ZeroDivisionError):
        predict(
            config_for(tmp_path, *FIFTY[:9]), lambda _: Echo([4, 8], lambda count: 1 / (1 - count))
        )
    assert "1 of 9 answers are finished and saved; missing: prompt 1-4, 6-9\n" in (
        capsys.readouterr().err
    )


def test_last_line_tells_tokens_and_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predict(config_for(tmp_path, "a"), lambda _: Echo())
    assert capsys.readouterr().err.splitlines()[-1].startswith("mindformers_glm: prompt 1 token")


@pytest.mark.parametrize(
    ("prompts", "options", "is_shown"),
    [
        (["a"], [], False),  # stderr is no terminal here
        (["a"], ["--stream", "True"], True),
        (["a", "b"], ["--stream", "True"], True),
        (["a"], ["--stream", "False"], False),
    ],
)
def test_text_is_streamed_to_stderr_where_it_is_asked_for(
    prompts: list[str],
    options: list[str],
    is_shown: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    echo = Echo()
    predict(config_for(tmp_path, *prompts, options=options), lambda _: echo)
    assert echo.is_text_shown == is_shown
    printed = capsys.readouterr()
    assert ("A\n" in printed.err) == is_shown
    assert len(printed.out.splitlines()) == len(prompts)


@pytest.mark.parametrize(("num_prompts", "is_shown"), [(1, True), (2, False)])
def test_one_answer_is_streamed_to_a_terminal_by_itself(
    num_prompts: int, is_shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    echo = Echo()
    predict(config_for(tmp_path, *"ab"[:num_prompts]), lambda _: echo)
    assert echo.is_text_shown == is_shown


@pytest.mark.parametrize(
    ("device_target", "levels", "line"),
    [
        ("CPU", ["model_level.CPU=Validated"], "model level on CPU: Validated (evaluated"),
        ("CPU", [], None),
        ("Ascend", ["model_level.CPU=Validated"], None),
        ("Ascend", ["model_level.Ascend=Untested"], "model level on Ascend: Untested (nobody"),
    ],
)
def test_the_level_of_the_device_is_told_in_one_line(
    device_target: str,
    levels: list[str],
    line: str | None,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    yaml_file = tmp_path / "run.yaml"
    yaml_file.write_text("seed: 0\n", encoding="utf-8")
    (tmp_path / "checkpoint").mkdir()
    options = ["--config", str(yaml_file), "--device_target", device_target]
    options += ["--options", *levels] if levels else []
    options += ["--pretrained_model_dir", str(tmp_path / "checkpoint")]
    predict(config_for(tmp_path, "a", options=options), lambda _: Echo())
    told = [said for said in capsys.readouterr().err.splitlines() if "model level" in said]
    assert [line in said for said in told] == [True] * bool(line)


def test_the_level_of_a_file_is_not_that_of_the_shipped_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["--config", str(REPO / "configs/glm4/predict_glm4.yaml"), "--predict_data", "a"]
    argv += ["--save_file", str(tmp_path / "result.txt")]
    predict(load_run_config(predict_arguments(*argv), environ={}), lambda _: Echo())
    assert "model level" not in capsys.readouterr().err
