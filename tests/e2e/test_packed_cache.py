"""A second start from the packed cache: the same answers, from the file."""

import signal
from pathlib import Path

import pytest

from mindformers_glm.weights.packed_cache import FOLDER_NAME
from tests.e2e.run_process import Run, Starter, finish
from tests.e2e.test_interruption import wait_until_mapped


def ask(start: Starter, checkpoint: Path, *argv: str) -> Run:
    run = finish(
        start(
            *("--pretrained_model_dir", str(checkpoint), "--max_new_tokens", "8"),
            *("--predict_data", "hello", "--packed_cache", *argv),
        )
    )
    assert run.exit_code == 0, run
    return run


def test_the_second_start_reads_the_cache_and_answers_alike(
    checkpoint: Path, start: Starter
) -> None:
    expected = ask(start, checkpoint, "off")
    assert not (checkpoint / FOLDER_NAME).exists()
    first = ask(start, checkpoint, "on")
    (file,) = (checkpoint / FOLDER_NAME).iterdir()
    assert sum("is written" in line for line in first.notes) == 1
    # What the file holds is what answers: other bytes, other answers.
    second = ask(start, checkpoint, "auto", "--verbose")
    assert any(f"come from the packed cache {file}" in line for line in second.notes)
    assert first.stdout == second.stdout[-1:] == expected.stdout

    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    damaged = ask(start, checkpoint, "on")
    assert sum("is not used" in line for line in damaged.notes) == 1
    assert damaged.stdout == expected.stdout
    assert any("is written" in line for line in damaged.notes)


def test_a_small_checkpoint_gets_no_cache(checkpoint: Path, start: Starter) -> None:
    run = ask(start, checkpoint, "auto")
    assert not (checkpoint / FOLDER_NAME).exists()
    assert not any("cache" in line for line in run.notes)


@pytest.mark.slow
def test_ctrl_c_at_any_time_leaves_no_half_file(checkpoint: Path, start: Starter) -> None:
    process = start(
        *("--pretrained_model_dir", str(checkpoint), "--packed_cache", "on"),
        *("--predict_data", "hello", "--max_new_tokens", "8"),
    )
    wait_until_mapped(process, "_kernels.")
    process.send_signal(signal.SIGINT)
    assert finish(process).exit_code == 130
    folder = checkpoint / FOLDER_NAME
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    assert all(name.endswith(".glmpack") for name in names)
