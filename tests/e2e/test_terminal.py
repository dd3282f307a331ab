"""What stands on a terminal: loading, the answer as it comes, and the line at the end."""

import ast
import re
import sys
from pathlib import Path

import pytest

from scripts.bench.terminal import Screen, TerminalRun, run_in_terminal
from tests.e2e.run_process import REPO

pytestmark = pytest.mark.weights
FIGURES = (
    r"mindformers_glm: prompts? (\d+) tokens?, [\d.]+ tokens/s; answers? (\d+) tokens, "
    r"[\d.]+ tokens/s; first token after [\d.]+ s; load [\d.]+ s; peak memory [\d.]+ [MG]B"
)


def predict(work: Path, *argv: str) -> TerminalRun:
    command = [sys.executable, str(REPO / "run_mindformer.py"), *argv]
    return run_in_terminal(command, folder=work, environ={"OMP_NUM_THREADS": "1"})


def read_result(work: Path) -> list[str]:
    content = (work / "text_generation_result.txt").read_text(encoding="utf-8")
    return [entry["text_generation_text"][0] for entry in ast.literal_eval(content)]


def test_one_answer_streams_and_its_figures_are_the_last_line(work: Path) -> None:
    run = predict(work, "--predict_data", "请介绍一下北京")
    assert run.exit_code == 0
    (answer,) = read_result(work)
    screen = Screen(1000)
    screen.write(run.text)
    shown = "\n".join(screen.lines)
    # Streamed, then for programs, then the figures.
    assert shown.count(answer) == 1
    begin = shown.index(answer)
    result = str({"text_generation_text": [answer]})
    assert re.fullmatch(f"\n{re.escape(result)}\n{FIGURES}\n", shown[begin + len(answer) :])
    assert run.time_of(answer.strip()[-5:]) > run.time_of(answer.strip()[:2])
    assert re.search(r"Loading weights: .*/7\.61M \[.*B/s\]", run.text)
    assert "Reading prompts" in run.text
    assert "Answers" not in run.text


def test_a_batch_shows_a_bar_of_tokens_in_place_of_text(work: Path) -> None:
    (work / "questions.jsonl").write_text(
        '{"prompt": "1 + 1 ="}\n{"messages": [{"role": "user", "content": "你好"}]}\n',
        encoding="utf-8",
    )
    run = predict(work, "--predict_data", "questions.jsonl", "--predict_batch_size", "2")
    assert run.exit_code == 0
    assert re.search(r"Answers 0/2: \d+ tokens \[", run.text)
    assert [run.text.count(answer) for answer in read_result(work)] == [0, 0]  # "\n" is escaped
    last = re.search(FIGURES, run.text)
    assert last is not None
    assert int(last[2]) > 20
