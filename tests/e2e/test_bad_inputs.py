"""What a user can get wrong: one sentence, a non-zero exit code, and no file left behind."""

import ast
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.e2e.random_checkpoint import CONTEXT
from tests.e2e.run_process import Starter, finish

FIRST_SHARD = "model-00001-of-00002.safetensors"
INDEX = "model.safetensors.index.json"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


def remove_all_files(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def remove_folder(folder: Path) -> None:
    remove_all_files(folder)
    folder.rmdir()


def truncate_shard(folder: Path) -> None:
    os.truncate(folder / FIRST_SHARD, (folder / FIRST_SHARD).stat().st_size - 100)


def edit_tensors(folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change a shard and the index with it, so that only the tensors themselves are wrong."""
    tensors = load_file(folder / FIRST_SHARD)
    edit(tensors)
    save_file(tensors, folder / FIRST_SHARD, {"format": "pt"})
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    others = {name: file for name, file in index["weight_map"].items() if file != FIRST_SHARD}
    edit_json(folder / INDEX, weight_map=others | dict.fromkeys(tensors, FIRST_SHARD))


def use_hostile_pytorch_file(folder: Path) -> None:
    """A pytorch_model.bin that would create a file if it were unpickled."""
    for path in folder.glob("model*"):
        path.unlink()

    class Exploit:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {folder / 'created'}",)

    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({"lm_head.weight": Exploit()}, 2))
        file.writestr("archive/version", "3\n")


def remove_tensor(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))


def add_tensor(folder: Path) -> None:
    surplus = np.zeros(3, np.float32)
    edit_tensors(folder, lambda tensors: tensors.update({"model.surplus.weight": surplus}))


def change_shape(folder: Path) -> None:
    wrong = np.zeros((7, 7), np.float32)
    edit_tensors(folder, lambda tensors: tensors.update({"lm_head.weight": wrong}))


BROKEN_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing folder": (remove_folder, "does not exist"),
    "empty folder": (remove_all_files, "is empty"),
    "LFS pointer for weights": (
        lambda folder: (folder / FIRST_SHARD).write_text(LFS_POINTER),
        "Git-LFS pointer",
    ),
    "LFS pointer for config.json": (
        lambda folder: (folder / "config.json").write_text(LFS_POINTER),
        "Git-LFS pointer",
    ),
    "no weights": (
        lambda folder: [path.unlink() for path in folder.glob("model*")],
        "safetensors",
    ),
    "code in a PyTorch file": (use_hostile_pytorch_file, "asks for 'posix.system'"),
    "truncated shard": (truncate_shard, FIRST_SHARD),
    "missing shard": (lambda folder: (folder / FIRST_SHARD).unlink(), FIRST_SHARD),
    "missing tensor": (remove_tensor, "lm_head.weight"),
    "extra tensor": (add_tensor, "model.surplus.weight"),
    "wrong shape": (change_shape, "lm_head.weight"),
    "broken JSON": (lambda folder: (folder / "config.json").write_text("{"), "not valid JSON"),
    "broken index": (lambda folder: (folder / INDEX).write_text("["), "not valid JSON"),
    "unknown model_type": (
        lambda folder: edit_json(folder / "config.json", model_type="llama"),
        "llama",
    ),
    "no config.json": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    "broken tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text('{"model": 1}'),
        "tokenizer.json",
    ),
    "broken generation_config.json": (
        lambda folder: (folder / "generation_config.json").write_text('{"top_p": 2}'),
        "top_p",
    ),
}


def check_refused(
    start: Starter, work: Path, argv: list[str], exit_code: int, message: str
) -> None:
    before = sorted(work.rglob("*"))
    run = finish(start(*argv))
    assert run.exit_code == exit_code, run
    assert run.stdout == []
    assert len(run.errors) == 1, run.errors
    assert run.errors[0].startswith("error: ")
    assert message in run.errors[0]
    assert "internal error" not in run.errors[0]
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize("case", BROKEN_FOLDERS)
def test_a_broken_checkpoint_folder_is_one_sentence(
    case: str, checkpoint: Path, work: Path, start: Starter
) -> None:
    break_folder, message = BROKEN_FOLDERS[case]
    break_folder(checkpoint)
    argv = ["--pretrained_model_dir", str(checkpoint), "--predict_data", "hello"]
    check_refused(start, work, argv, 1, message)


@pytest.mark.parametrize(
    ("argv", "exit_code", "message"),
    [
        (["--parallel_config.model_parallel", "2"], 1, "needs processes that a launcher starts"),
        (["--parallel_config.data_parallel", "2"], 1, "data_parallel"),
        (["--use_parallel", "True"], 1, "a launcher starts"),
        (["--run_mode", "train"], 1, "inference only"),
        (["--mode", "1"], 1, "GRAPH_MODE"),
        (["--device_target", "GPU"], 1, "CPU or Ascend"),
        (["--device_target", "Ascend"], 1, "needs an NPU and its driver"),
        (["--epochs", "3"], 1, "inference only"),
        (["--predict_dta", "x"], 2, "did you mean predict_data"),
        (["--seed"], 2, "expected one argument"),
        (["--config", "nothere.yaml"], 1, "nothere.yaml does not exist"),
        (["--model.model_config.compute_dtype", "float16"], 1, "cannot be computed"),
        (["--top_p", "2"], 1, "top_p"),
        (["--save_file", "nothere/result.txt"], 1, "does not exist: create it first"),
        (["--context.max_device_memory", "10KB"], 1, "max_device_memory"),
        (["--predict_data", ""], 1, "empty prompt"),
        (["--predict_data", "nothere.txt"], 1, "nothere.txt does not exist"),
        (["--save_file", ""], 1, "save_file is empty"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_option_is_one_sentence(
    argv: list[str], exit_code: int, message: str, checkpoint: Path, work: Path, start: Starter
) -> None:
    given = ["--pretrained_model_dir", str(checkpoint), "--predict_data", "hello"]
    check_refused(start, work, [*given, *argv], exit_code, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("context: {max_device_memroy: 1GB}", "did you mean context.max_device_memory"),
        ("optimizer: {type: AdamW}", "inference only"),
        ("predict_batch_size: four", "must be a whole number"),
        ("use_legacy: True", "Mcore"),
        ("seed: [", "not valid YAML"),
        ("seed: 2020-13-45", "neither a number nor a date"),
        ("seed: 1\nseed: 2", "seed stands twice, first in line 1 (line 2)"),
    ],
)
def test_a_bad_yaml_file_is_one_sentence(
    content: str, message: str, checkpoint: Path, work: Path, start: Starter
) -> None:
    (work / "run.yaml").write_text(content)
    argv = ["--config", "run.yaml", "--pretrained_model_dir", str(checkpoint)]
    check_refused(start, work, [*argv, "--predict_data", "hello"], 1, message)


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "is empty"), (b"\n\n", "is empty"), (b"\xff", "not UTF-8")]
)
def test_a_bad_prompt_file_is_one_sentence(
    content: bytes, message: str, checkpoint: Path, work: Path, start: Starter
) -> None:
    (work / "questions.txt").write_bytes(content)
    argv = ["--pretrained_model_dir", str(checkpoint), "--predict_data", "questions.txt"]
    check_refused(start, work, argv, 1, message)


def test_a_run_without_a_prompt_is_refused(checkpoint: Path, work: Path, start: Starter) -> None:
    check_refused(start, work, ["--pretrained_model_dir", str(checkpoint)], 1, "no prompt")


def test_inspect_refuses_what_predict_refuses(checkpoint: Path, start: Starter) -> None:
    remove_tensor(checkpoint)
    run = finish(start("inspect", str(checkpoint), program=("-m", "mindformers_glm")))
    assert (run.exit_code, run.stdout) == (1, [])
    assert len(run.errors) == 1
    assert "lm_head.weight" in run.errors[0]


def test_prompt_longer_than_the_context_fails_alone(
    checkpoint: Path, work: Path, start: Starter
) -> None:
    prompts = ["hello", "x" * CONTEXT, "bye"]
    argv = ["--pretrained_model_dir", str(checkpoint), "--max_new_tokens", "4"]
    run = finish(start(*argv, "--predict_batch_size", "2", "--predict_data", *prompts))
    assert run.exit_code == 1, run
    assert run.errors == []
    results = read_results(work)
    assert [result.get("error") is None for result in results] == [True, False, True]
    assert str(CONTEXT) in results[1]["error"]
    assert results[1]["text_generation_text"] == [""]
    assert [ast.literal_eval(line) for line in run.stdout] == results


def read_results(work: Path) -> Any:
    return ast.literal_eval((work / "text_generation_result.txt").read_text(encoding="utf-8"))
