"""What a user sees: predict in a terminal of 80 columns, as docs/terminal.md shows it.

    python scripts/bench/capture_terminal.py [NAME ...]     prints it
    python scripts/bench/capture_terminal.py --write        writes docs/terminal.md anew

Of each run: the line of the cursor at the last moments at which it fitted a pattern, and what stood
on the screen in the end.
"""

import re
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from terminal import Screen, TerminalRun, run_in_terminal

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "terminal.md"
HOME = "/home/me/mindformers_glm"
_BEGIN = "<!-- captures -->\n"
_PREDICT = "run_mindformer.py --config configs/glm4/predict_glm4.yaml"
_QUESTIONS = ["请介绍一下北京", "1 + 1 =", "hello", "请介绍一下上海", "12 + 30 =", "你好"]
_HALF_AN_ANSWER = "北京是[^。]+$"


@dataclass(frozen=True)
class Capture:
    """A command, what the page calls it, and patterns at whose last moments a line is shown."""

    title: str
    arguments: str
    moments: tuple[str, ...]
    ranks: int = 1

    @property
    def command(self) -> str:
        """As it is typed."""
        if self.ranks == 1:
            return f"python {_PREDICT} \\\n    {self.arguments}"
        return (
            f'bash scripts/msrun_launcher.sh "{_PREDICT} \\\n    --use_parallel True '
            f"--auto_trans_ckpt True --parallel_config.model_parallel {self.ranks} \\\n    "
            f'{self.arguments}" {self.ranks}'
        )


CAPTURES = {
    "one": Capture(
        "One prompt",
        "--predict_data '请介绍一下北京'",
        ("Loading weights", "Reading prompts", _HALF_AN_ANSWER),
    ),
    "batch": Capture(
        "A batch",
        "--predict_batch_size 2 --predict_data questions.txt --save_file answers.jsonl",
        ("Loading weights", "Answers"),
    ),
    "ranks": Capture(
        "Two ranks",
        "--predict_data '请介绍一下北京'",
        ("Loading weights", _HALF_AN_ANSWER),
        ranks=2,
    ),
}


def main(*words: str) -> None:
    """Run what is asked for, and print it or write the page."""
    names = [word for word in words if word != "--write"] or list(CAPTURES)
    text = "\n".join(_capture(CAPTURES[name]) for name in names)
    if "--write" not in words:
        print(text)
        return
    before, begin, _ = PAGE.read_text(encoding="utf-8").partition(_BEGIN)
    PAGE.write_text(f"{before}{begin}\n{text}", encoding="utf-8")


def _capture(capture: Capture) -> str:
    """Markdown of one run."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "questions.txt").write_text("\n".join(_QUESTIONS), encoding="utf-8")
        script = capture.command.replace("scripts/", f"{ROOT}/scripts/")
        script = script.replace("python run", f"{sys.executable} {ROOT}/run")
        script = script.replace("configs/", f"{ROOT}/configs/")
        environ = {"PYTHON": sys.executable, "MASTER_PORT": "auto"}
        run = run_in_terminal(["bash", "-c", script], folder=Path(folder), environ=environ)
    if run.exit_code != 0:
        raise SystemExit(f"{capture.title} ended with {run.exit_code}: {run.text}")
    # The reader's folder has another name.
    run = replace(run, pieces=[(t, text.replace(str(ROOT), HOME)) for t, text in run.pieces])
    screens = [_line_when_last(run, pattern) for pattern in capture.moments]
    screens.append(_screen(run.text))
    fences = "".join(f"```text\n{screen}```\n\n" for screen in screens)
    return f"## {capture.title}\n\n```bash\n{capture.command}\n```\n\n{fences}".removesuffix("\n")


def _line_when_last(run: TerminalRun, pattern: str) -> str:
    """The line of the cursor at the last moment at which it held what the pattern says."""
    screen, found = Screen(), ""
    for _, piece in run.pieces:
        for part in piece.splitlines(keepends=True):
            screen.write(part)
            line = screen.lines[-1]
            if re.search(pattern, line) and "{" not in line:
                found = f"{line}\n"
    if not found:
        raise SystemExit(f"{pattern} was never seen.")
    return found


def _screen(text: str) -> str:
    screen = Screen()
    screen.write(text)
    return "\n".join(screen.lines).rstrip("\n") + "\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
