"""Do predict's last line and --verbose agree with a clock outside? One prompt, a batch, two ranks.

    python scripts/bench/check_figures.py [RUNS]

The clock is that of the terminal the program writes to: when the bar of the prompt appeared, when
the first text, when the result. Both look at the same run, so a busy machine disturbs neither.
"""

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from terminal import TerminalRun, run_in_terminal

ROOT = Path(__file__).resolve().parents[2]
_NUM_NEW = 300
_LONG = "北京" * 300
_SETTINGS = f"--verbose --max_new_tokens {_NUM_NEW} --min_new_tokens {_NUM_NEW}"
_SPLIT = "--use_parallel True --auto_trans_ckpt True --parallel_config.model_parallel 2"
_RESULT = "{'text_generation_text'"


def main(runs: int = 3) -> None:
    """Print a row for each figure of each run; exit code 1 if one is more than 3 % off."""
    print(f"{'run':<12}{'figure':<28}{'told':>10}{'outside':>10}{'ratio':>8}")
    is_off = False
    for _ in range(runs):
        for name, check in (("one prompt", _one), ("two ranks", _two), ("batch", _batch)):
            for figure, told, outside in check():
                ratio = told / outside
                is_off |= abs(ratio - 1) > 0.03
                print(
                    f"{name:<12}{figure:<28}{told:>10.4g}{outside:>10.4g}{ratio:>8.3f}", flush=True
                )
    sys.exit(is_off)


def _one() -> Iterator[tuple[str, float, float]]:
    command = [sys.executable, f"{ROOT}/run_mindformer.py"]
    run = _run([*command, *f"{_SETTINGS} --predict_data {_LONG}".split()])
    told = _read_figures(run)
    first_s = _first_text_s(run)
    yield "start, load, first token: s", told["start"] + told["load"] + told["first"], first_s
    yield "peak memory: MB", told["peak"], run.peak_bytes / 2**20
    yield from _speeds(run, told)


def _two() -> Iterator[tuple[str, float, float]]:
    command = f"run_mindformer.py {_SPLIT} {_SETTINGS} --predict_data {_LONG}"
    run = _run(["bash", f"{ROOT}/scripts/msrun_launcher.sh", command, "2"])
    yield from _speeds(run, _read_figures(run))


def _speeds(run: TerminalRun, told: dict[str, float]) -> Iterator[tuple[str, float, float]]:
    begin_s, first_s, end_s = run.time_of("Reading"), _first_text_s(run), run.time_of(_RESULT)
    yield "prompt: tokens/s", told["prompt speed"], told["prompt"] / (first_s - begin_s)
    yield "answer: tokens/s", told["answer speed"], (_NUM_NEW - 1) / (end_s - first_s)


def _batch() -> Iterator[tuple[str, float, float]]:
    with tempfile.TemporaryDirectory() as folder:
        questions = Path(folder) / "questions.txt"
        questions.write_text("".join(f"{number} + {number} =\n" for number in range(20)))
        saved = f"--predict_batch_size 4 --save_file {folder}/a.jsonl --predict_data {questions}"
        run = _run([sys.executable, f"{ROOT}/run_mindformer.py", *f"{_SETTINGS} {saved}".split()])
        lines = Path(f"{folder}/a.jsonl").read_text(encoding="utf-8").splitlines()
    told = _read_figures(run)
    entries = [json.loads(line) for line in lines]
    duration_s = run.time_of(_RESULT) - run.time_of("Reading")
    yield "all: s", told["prompts_s"] + told["answers_s"], duration_s
    yield "prompt tokens", told["prompt"], sum(entry["prompt_tokens"] for entry in entries)
    yield "new tokens", told["answer"], sum(entry["completion_tokens"] for entry in entries)


def _run(command: list[str]) -> TerminalRun:
    with tempfile.TemporaryDirectory() as folder:
        environ = {"PYTHON": sys.executable, "MASTER_PORT": "auto"}
        run = run_in_terminal(command, folder=Path(folder), environ=environ)
    if run.exit_code != 0:
        raise SystemExit(run.text)
    return run


def _first_text_s(run: TerminalRun) -> float:
    """When text came behind the bar, which a blank line removes."""
    begin_s = run.time_of("Reading")
    return next(
        time_s
        for time_s, text in run.pieces
        if time_s > begin_s and text.split("\r")[-1].strip(" ") and "Reading" not in text
    )


def _read_figures(run: TerminalRun) -> dict[str, float]:
    """The numbers of the last line and of --verbose, by short names."""
    text = run.text.replace("\r\n", "\n")
    patterns = {
        "start": r"time: start ([\d.]+) s",
        "prompts_s": r"prompts ([\d.]+) s,",
        "answers_s": r"answers ([\d.]+) s \(",
        "prompt": r"prompts? (\d+) tokens,",
        "prompt speed": r"prompts? \d+ tokens, ([\d.]+) tokens/s",
        "answer": r"answers? (\d+) tokens,",
        "answer speed": r"answers? \d+ tokens, ([\d.]+) tokens/s",
        "first": r"first token after ([\d.]+) s",
        "load": r"; load ([\d.]+) s",
        "peak": r"peak memory ([\d.]+) MB",
    }
    found = {name: re.search(pattern, text) for name, pattern in patterns.items()}
    missing = [name for name, match in found.items() if match is None]
    if missing:
        raise SystemExit(f"{', '.join(missing)} not found in {text}")
    return {name: float(match[1]) for name, match in found.items() if match}


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
