"""`predict --ray`: the answers of `predict`, also after a kill."""

import re
from pathlib import Path

import psutil
import pytest

from tests.e2e.ray_server import LIMIT_S, Program, start

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

_FLOAT32 = (
    "--model.model_config.params_dtype=float32",
    "--model.model_config.compute_dtype=float32",
)
_NUM_PROMPTS = 1_500  # of a quiet machine seconds, in which a run can be caught at work
_RAY = ("--ray", "replicas=2")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prompts, and the answers of `predict` without Ray to them."""
    folder = tmp_path_factory.mktemp("predict")
    (folder / "q.txt").write_text("".join(f"{n} + {n} =\n" for n in range(_NUM_PROMPTS)))
    alone = Program(folder, *_words("alone.jsonl"))
    alone.wait_for(lambda: alone.process.poll() == 0)
    return folder


def _words(save_file: str, *words: str) -> list[str]:
    batch = ["--predict_batch_size", "4", "--max_new_tokens", "8", "--predict_data", "q.txt"]
    return ["mindformers_glm", "predict", *_FLOAT32, *batch, "--save_file", save_file, *words]


def _start(folder: Path, save_file: str) -> tuple[Program, Path]:
    """A run that has some answers, and its journal."""
    journal = folder / f"{save_file}.unfinished"

    def has_some(_: Program) -> bool:
        return journal.exists() and len(journal.read_text().splitlines()) > 10

    return start(lambda: Program(folder, *_words(save_file, *_RAY)), has_some), journal


def test_a_run_that_is_killed_goes_on_where_it_was(work: Path) -> None:
    killed, journal = _start(work, "ray.jsonl")
    children = psutil.Process(killed.process.pid).children(recursive=True)
    killed.kill()
    assert not psutil.wait_procs(children, timeout=LIMIT_S)[1]  # they end with it
    kept = len(journal.read_text().splitlines()) - 1
    again = start(
        lambda: Program(work, *_words("ray.jsonl", *_RAY)),
        lambda program: program.process.poll() == 0,
    )
    told = re.search(rf"(\d+) of {_NUM_PROMPTS} answers are there from a run before", again.log)
    assert told is not None
    assert int(told[1]) in (kept - 1, kept)  # the last line may be cut
    assert (work / "ray.jsonl").read_bytes() == (work / "alone.jsonl").read_bytes()
    assert not journal.exists()


def test_an_engine_that_is_killed_is_replaced(work: Path) -> None:
    run, _ = _start(work, "lost.jsonl")
    run.find("MapWorker")[0].kill()
    run.wait_for(lambda: run.process.poll() == 0)
    assert (work / "lost.jsonl").read_bytes() == (work / "alone.jsonl").read_bytes()
