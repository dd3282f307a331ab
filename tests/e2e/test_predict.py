"""The commands of upstream's GLM-4 model card, as they are written there."""

import ast
from pathlib import Path

import pytest

from tests.e2e.run_process import REPO, Starter, finish

MINI = REPO / "mindformers_glm" / "assets" / "glm4-mini"
CARD = [
    *("--config", "configs/glm4/predict_glm4.yaml"),
    *("--run_mode", "predict"),
    *("--use_parallel", "False"),
    *("--parallel_config.data_parallel", "1"),
    *("--parallel_config.model_parallel", "1"),
]


def read_results(work: Path) -> list[dict[str, list[str]]]:
    results = ast.literal_eval((work / "text_generation_result.txt").read_text(encoding="utf-8"))
    assert isinstance(results, list)
    return results


def test_one_prompt_is_answered_in_print_and_in_the_result_file(
    checkpoint: Path, work: Path, start: Starter
) -> None:
    argv = [*CARD, "--pretrained_model_dir", str(checkpoint), "--predict_data", "请介绍一下北京"]
    run = finish(start(*argv, "--max_new_tokens", "8"))
    assert (run.exit_code, run.errors) == (0, [])
    assert [ast.literal_eval(line) for line in run.stdout] == read_results(work)
    assert len(read_results(work)[0]["text_generation_text"]) == 1
    assert any("running on CPU" in note for note in run.notes)
    assert any("cut at the length limit" in note for note in run.notes)


def test_batch_from_a_text_file_keeps_the_order(
    checkpoint: Path, work: Path, start: Starter
) -> None:
    # Five prompts in batches of at most two; float32, so that batching cannot change a token.
    prompts = ["hello", "b", "hello", "a longer one", "b"]
    (work / "questions.txt").write_text("\n\n".join(prompts), encoding="utf-8")
    exact = ["params_dtype=float32", "compute_dtype=float32"]
    run = finish(
        start(
            *CARD,
            *("--pretrained_model_dir", str(checkpoint), "--predict_data", "questions.txt"),
            *("--predict_batch_size", "2", "--max_new_tokens", "8", "--save_file", "answers.txt"),
            *("--options", *(f"model.model_config.{setting}" for setting in exact)),
        )
    )
    assert (run.exit_code, run.errors) == (0, [])
    results = ast.literal_eval((work / "answers.txt").read_text(encoding="utf-8"))
    assert len(results) == 5
    assert (results[0], results[1]) == (results[2], results[4])
    assert results[0] != results[1] != results[3]
    assert any("skipped 4 blank lines" in note for note in run.notes)
    assert sorted(path.name for path in work.iterdir()) == ["answers.txt", "questions.txt"]


def test_weights_are_quantized_where_asked_for(
    checkpoint: Path, work: Path, start: Starter
) -> None:
    argv = [*CARD, "--pretrained_model_dir", str(checkpoint), "--predict_data", "hello"]
    run = finish(start(*argv, "--max_new_tokens", "4", "--quantization", "w8a16"))
    assert (run.exit_code, run.errors) == (0, [])
    assert len(read_results(work)[0]["text_generation_text"]) == 1


@pytest.mark.weights
@pytest.mark.skipif(not MINI.is_dir(), reason="the shipped checkpoint is not there")
def test_shipped_checkpoint_answers_when_none_is_given(work: Path, start: Starter) -> None:
    run = finish(start(*CARD, "--predict_data", "请介绍一下北京"))
    assert (run.exit_code, run.errors) == (0, [])
    assert "北京" in read_results(work)[0]["text_generation_text"][0]
    assert any("small checkpoint that ships with this project" in note for note in run.notes)
