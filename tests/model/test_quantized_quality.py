"""The whole report of a tiny model: KL and answers against those of its logits, by the command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from mindformers_glm import LLM
from mindformers_glm.serving import cli
from tests.e2e.random_checkpoint import write_checkpoint
from tests.unit.serving.test_cli import _signal_handlers_are_put_back  # noqa: F401

_TEXTS = ["One and one is two.", "北京", "The harbour was quiet before sunrise."]
_CHOICE = {
    "inputs_pretokenized": "Which?\nA. x\nB. y",
    "choices_pretokenized": [" A", " B"],
    "label": 0,
}


def _logits(folder: Path) -> tuple[list[list[int]], np.ndarray]:
    with LLM(folder, compute_dtype="float32") as llm:
        samples = [llm.tokenizer.encode(text) for text in _TEXTS]
        rows = np.concatenate([llm.logits(sample) for sample in samples]).astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    return samples, rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))


def test_report_full(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "float", tmp_path / "out"
    source.mkdir()
    write_checkpoint(source)
    texts, questions = tmp_path / "texts.json", tmp_path / "questions.jsonl"
    texts.write_text(json.dumps(_TEXTS), encoding="utf-8")
    questions.write_text(json.dumps(_CHOICE), encoding="utf-8")
    words = f"""--model_path {source} --save_directory {output} --w_bit 4 --a_bit 16
        --calib_file {texts} --report full --report_texts {texts} --questions {questions}"""
    assert cli.main(["quantize", *words.split()]) == 0
    told = capfd.readouterr().out
    assert "KL to float" in told
    report = json.loads((output / "report.json").read_text("utf-8"))
    assert len(report["modules"]) == 12
    assert {one["error"]["measured_on"] for one in report["modules"]} == {"outputs"}
    samples, ours = _logits(source)
    _, theirs = _logits(output)
    found = report["whole"]["logits"]
    assert found["num_positions"] == len(ours)
    kl = float((np.exp(ours) * (ours - theirs)).sum(axis=1).mean())
    assert found["kl"] == pytest.approx(kl, rel=1e-5)
    assert kl > 1e-4
    ends = np.cumsum([len(sample) for sample in samples])
    following = np.concatenate([[*sample[1:], -1] for sample in samples])
    counted = np.setdiff1d(np.arange(len(ours)), ends - 1)
    surprise = -theirs[counted, following[counted]].mean()
    assert found["perplexity"] == pytest.approx(math.exp(surprise), rel=1e-5)
    answers = report["whole"]["answers"]
    assert answers["num_questions"] == 1
    assert answers["right"] in (0, 1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--questions x.jsonl", "--report_texts and --questions are of --report full"),
        ("--report most", "--report must be one of none, layers, full"),
        ("--report full --format numpy", "which --format numpy does not write"),
        ("--report full --report_texts nowhere.jsonl", "nowhere.jsonl"),
        ("--report full --questions nowhere.jsonl", "nowhere.jsonl"),
    ],
)
def test_wrong_use_is_told_before_any_work(
    words: str, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "float"
    source.mkdir()
    write_checkpoint(source)
    places = f"--model_path {source} --save_directory {tmp_path}/out"
    assert cli.main(["quantize", *places.split(), *words.split()]) == 1
    told = capfd.readouterr()
    assert says in told.err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["float"]


def test_no_report_leaves_no_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "float", tmp_path / "out"
    source.mkdir()
    write_checkpoint(source)
    words = f"--model_path {source} --save_directory {output} --a_bit 16 --report none"
    assert cli.main(["quantize", *words.split()]) == 0
    assert "SNR" not in capfd.readouterr().out
    assert not list(output.glob("report*"))
