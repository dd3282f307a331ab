"""Commands, exit codes and what goes to stdout and stderr."""

import argparse
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.serving import cli, predict
from mindformers_glm.system.log import set_verbose
from mindformers_glm.version import __version__


@pytest.fixture(autouse=True)
def _signal_handlers_are_put_back() -> Iterator[None]:
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def fail_with(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes `predict` raise the given error."""

    def arrange(error: BaseException) -> None:
        def raise_it(config: object, load: object) -> int:
            raise error

        monkeypatch.setattr(predict, "predict", raise_it)

    return arrange


def test_version_names_what_is_installed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"mindformers_glm {__version__}"
    assert [line.split()[0] for line in lines] == [
        "mindformers_glm",
        "mindspore",
        "mindformers",
        "Python",
        "CPU",
        "Ascend",
    ]
    assert ", built by " in lines[-2]


@pytest.mark.parametrize(
    "argv",
    [["predict", "--version"], ["predict", "--top_k", "1", "--version"], ["cache", "--version"]],
)
def test_every_command_tells_the_versions(
    argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv, prog="run_mindformer.py") == 0
    assert capsys.readouterr().out.startswith(f"mindformers_glm {__version__}\n")


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert cli.main([]) == 2
    assert "inspect" in capsys.readouterr().out


def test_help_of_predict_is_called_as_the_program_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "--help"]) == 0
    assert capsys.readouterr().out.startswith("usage: mindformers-glm predict [-h]")
    assert cli.main(["predict", "-h"], prog="run_mindformer.py") == 0
    assert capsys.readouterr().out.startswith("usage: run_mindformer.py [-h]")


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_nothing_heavy_is_imported_for(word: str) -> None:
    code = (
        "import sys; from mindformers_glm.serving.cli import main; main(sys.argv[1:]);"
        "print([name for name in sys.modules if name.split('.')[0] in "
        "('mindspore', 'mindformers', 'transformers', 'yaml')])"
    )
    run = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True)
    assert run.stdout.splitlines()[-1] == "[]", run


def test_a_command_is_one_file_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--times", type=int, default=1)

    def run(arguments: argparse.Namespace) -> int:
        print("hello " * arguments.times)
        return 7

    greet = ModuleType("mindformers_glm.serving.greet")
    vars(greet).update(add_arguments=add_arguments, run=run)
    monkeypatch.setitem(sys.modules, greet.__name__, greet)
    monkeypatch.setitem(cli.COMMANDS, "greet", ("greet", "say hello"))
    assert cli.main(["greet", "--times", "2"]) == 7
    assert capsys.readouterr().out == "hello hello \n"
    assert cli.main(["greet", "--help"]) == 0
    assert cli.main(["--help"]) == 0
    assert capsys.readouterr().out.count("say hello") == 2
    for argv, message in (
        (["gret"], "error: Unknown command 'gret': did you mean greet?"),
        (["greet", "--often"], "error: The command line is wrong: unrecognized arguments: --often"),
        (["greet", "--times", "x"], "argument --times: invalid int value: 'x'"),
    ):
        assert cli.main(argv) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "exit_code", "message"),
    [
        (["predct"], 2, "did you mean predict?"),
        (["inspect"], 2, "inspect DIR"),
        (["inspect", "/nothere"], 1, "/nothere does not exist"),
        (["predict", "--predict_dta", "x"], 2, "did you mean predict_data?"),
        (["predict", "--epochs", "1"], 1, "inference only"),
        (["predict"], 1, "There is no prompt"),
        (["frobnicate"], 2, "Unknown command 'frobnicate': mindformers-glm --help lists"),
        (["--predict_data", "x"], 2, "did you mean predict?"),
        (["gpu", "x"], 2, "--help lists the commands"),
        (["predict", "--seed", "x"], 2, "--seed on the command line must be a whole number"),
        (["predict", "--predict_batch_size", "0"], 1, "at least 1, got 0"),
        (["download", "--list-only", "x"], 2, "unrecognized arguments: --list-only"),
    ],
)
def test_error_is_one_sentence_with_its_exit_code(
    argv: list[str], exit_code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(argv) == exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_defect_is_one_sentence_and_a_traceback_when_asked(
    fail_with: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(RuntimeError("first\nsecond"))
    assert cli.main(["predict"]) == 1
    assert capsys.readouterr().err == (
        "error: internal error, RuntimeError: first (run again with --verbose for the whole "
        "story)\n"
    )
    assert cli.main(["predict", "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_defect_is_told_by_the_first_line_with_words(
    fail_with: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(RuntimeError("\n----------\n- Framework Error Message:\n----------\nbad"))
    assert cli.main(["predict", "--verbose"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == "error: internal error, RuntimeError: bad"


def test_traceback_of_a_user_error_is_shown_when_asked(
    fail_with: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(ConfigError("wrong"))
    assert cli.main(["predict", "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "yaml", "is_shown"),
    [
        (["--verbose=True"], "seed: 0", True),
        ([], "verbose: true", True),
        (["--verbose", "False"], "seed: 0", False),
        (["--verbose", "False"], "verbose: true", False),
        (["--verbose", "False", "--seed", "x"], "seed: 0", False),
    ],
)
def test_traceback_follows_the_setting_verbose(
    argv: list[str],
    yaml: str,
    is_shown: bool,
    fail_with: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "run.yaml").write_text(yaml)
    fail_with(ConfigError("wrong"))
    exit_code = 2 if "x" in argv else 1
    assert cli.main(["predict", "--config", str(tmp_path / "run.yaml"), *argv]) == exit_code
    assert ("Traceback" in capsys.readouterr().err) is is_shown
    set_verbose(False)


def test_interruption_is_one_word_and_130(
    fail_with: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(KeyboardInterrupt())
    assert cli.main(["predict"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_sigterm_interrupts(monkeypatch: pytest.MonkeyPatch) -> None:
    def terminate(config: object, load: object) -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr(predict, "predict", terminate)
    assert cli.main(["predict"]) == 130
