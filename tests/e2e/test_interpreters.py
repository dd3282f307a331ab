"""Started by a Python that cannot run the project: one sentence says what to do."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.run_process import REPO

# Stands for the sys.version_info of another Python.
_AS_VERSION = (
    "import runpy, sys; sys.version_info = ({version}, 0); sys.argv = ['run_mindformer.py'];"
    "runpy.run_path({script!r}, run_name='__main__')"
)


def check_one_sentence(run: subprocess.CompletedProcess[str], *words: str) -> None:
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.count("\n") == 1
    assert run.stderr.startswith("error: ")
    assert run.stderr.endswith(".\n")
    for word in words:
        assert word in run.stderr


@pytest.mark.parametrize("options", [[], ["--help"], ["--version"], ["--predict_data", "a"]])
def test_an_interpreter_without_the_packages(options: list[str], tmp_path: Path) -> None:
    # Where no environment is beside it. -I and -S: neither PYTHONPATH nor site-packages, as the
    # system's own python.
    (tmp_path / "run_mindformer.py").write_bytes((REPO / "run_mindformer.py").read_bytes())
    command = [sys.executable, "-I", "-S", "run_mindformer.py", *options]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    check_one_sentence(run, f"{sys.executable} has no mindspore", "scripts/quickstart.sh")


@pytest.mark.parametrize("version", ["3, 7", "3, 9", "3, 12", "3, 13", "4, 0"])
def test_another_python(version: str) -> None:
    code = _AS_VERSION.format(version=version, script=str(REPO / "run_mindformer.py"))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    check_one_sentence(run, f"3.11 is needed, and {sys.executable} is {version.replace(', ', '.')}")


def test_an_environment_that_is_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "run_mindformer.py").write_bytes((REPO / "run_mindformer.py").read_bytes())
    (tmp_path / ".venv").mkdir()
    command = [sys.executable, "-I", "-S", "run_mindformer.py"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    check_one_sentence(run, f"enter the environment first (source {tmp_path}/.venv/bin/activate)")


def test_the_launcher_with_an_interpreter_without_the_packages(tmp_path: Path) -> None:
    other = tmp_path / "python"
    other.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    other.chmod(0o755)
    run = subprocess.run(
        ["bash", str(REPO / "scripts/msrun_launcher.sh"), "run_mindformer.py", "2"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(other)},
        capture_output=True,
        text=True,
    )
    check_one_sentence(run, "(Python 3.", "has no mindspore: activate the environment")


def test_a_missing_package_is_one_sentence() -> None:
    code = (
        "import sys; sys.modules['yaml'] = None\n"
        "from mindformers_glm.serving.cli import main; sys.exit(main(['predict', '--seed', '1']))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    check_one_sentence(run, f"{sys.executable} has no yaml", "pip install -e .")
