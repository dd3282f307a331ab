"""A model split over processes answers as one process does, which answers as Hugging Face does."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindformers_glm.weights.share_writer import write_shares
from tests.conftest import MINI, TOLERANCES, relative_error
from tests.tp.conftest import Launcher
from tests.tp.launched import REPO

pytest.importorskip("mindspore")
pytest.importorskip("torch")

pytestmark = pytest.mark.tp
WORKER = Path(__file__).parent / "split_worker.py"
# 8 ranks: a head each, every key-value head on four of them, 17 FFN columns, 66 tokens or less.
CHANGES = {"vocab_size": 521, "num_attention_heads": 8, "intermediate_size": 136}
CARD = [
    *("--config", str(REPO / "configs/glm4/predict_glm4.yaml"), "--run_mode", "predict"),
    *("--parallel_config.data_parallel", "1"),
]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints by name: GLM-4-0414, the same cut for two ranks, GLM-4 in both its layouts."""
    from tests.model.chatglm_layout import to_chatglm
    from tests.model.hf_oracle import save_random_checkpoint

    root = tmp_path_factory.mktemp("checkpoints")
    sandwich = save_random_checkpoint(root / "sandwich", **CHANGES)
    write_shares(sandwich, root / "cut", 2)
    pre_norm = save_random_checkpoint(root / "pre_norm", model_type="glm", **CHANGES)
    chatglm = to_chatglm(pre_norm, root / "chatglm")
    found = {"sandwich": sandwich, "cut": root / "cut", "pre_norm": pre_norm, "chatglm": chatglm}
    return found | ({"mini": MINI} if MINI.is_dir() else {})


@pytest.fixture(scope="session")
def alone(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[dict[str, Any], np.ndarray]]:
    """What a single process answers."""
    work = tmp_path_factory.mktemp("alone")
    names = [name for name in folders if name != "cut"]
    command = [sys.executable, str(WORKER), "1", *(str(folders[name]) for name in names)]
    subprocess.run(command, cwd=work, env=_environment(), check=True)
    return lambda name: read(work, folders["sandwich" if name == "cut" else name], 1, 0)


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(REPO), "GLOG_v": "3"}


def read(work: Path, folder: Path, size: int, rank: int) -> tuple[dict[str, Any], np.ndarray]:
    file = work / f"{folder.name}-{size}-{rank}.json"
    return json.loads(file.read_text()), np.load(file.with_suffix(".npy"))


@pytest.mark.parametrize(
    ("size", "names"),
    [
        (2, ["sandwich", "cut", "pre_norm", "chatglm"]),
        (4, ["mini"]),
        pytest.param(8, ["sandwich"], marks=pytest.mark.slow),
    ],
)
def test_ranks_answer_as_one_process_does(
    launch: Launcher,
    work: Path,
    folders: dict[str, Path],
    alone: Callable[[str], tuple[dict[str, Any], np.ndarray]],
    size: int,
    names: list[str],
) -> None:
    if not (names := [name for name in names if name in folders]):
        pytest.skip("the shipped checkpoint is not here")
    shutil.copy(WORKER, work)
    command = f"split_worker.py {size} {' '.join(str(folders[name]) for name in names)}"
    ended = launch(command, str(size), GLOG_v="3").wait(timeout_s=300)
    assert ended.exit_code == 0, ended.stderr
    for name in names:
        expected, expected_logits = alone(name)
        ranks = [read(work, folders[name], size, rank) for rank in range(size)]
        for found, logits in ranks:
            assert found["tokens"] == expected["tokens"], name
            prompt, setting = found["told"]
            assert "rank 1 has other prompts" in prompt
            assert "rank 1 has other seed" in setting
            assert relative_error(logits, expected_logits) < TOLERANCES["logits_float32"]
            np.testing.assert_array_equal(logits, ranks[0][1])  # every bit
            assert found["num_blocks"] == ranks[0][0]["num_blocks"]
            # Two key-value heads: a half on each of two ranks, one of them on more.
            assert found["kv_block_bytes"] == expected["kv_block_bytes"] // 2
            _check_share(found["read_weight_bytes"], expected["read_weight_bytes"], size)
            _check_share(found["weights_bytes"], expected["weights_bytes"], size)


def _check_share(found: int, whole: int, size: int) -> None:
    # What is not cut: norms, and key-value heads beyond two ranks; tiles are padded to 16 rows.
    assert whole / size < found < whole / size + 0.2 * whole


def test_logits_are_hugging_faces(
    alone: Callable[[str], tuple[dict[str, Any], np.ndarray]], folders: dict[str, Path]
) -> None:
    """The single process that ranks are compared with is right itself."""
    import torch
    from transformers import AutoModelForCausalLM

    _, logits = alone("sandwich")
    model = AutoModelForCausalLM.from_pretrained(folders["sandwich"], torch_dtype=torch.float32)
    token_ids = np.random.default_rng(0).integers(0, CHANGES["vocab_size"], 41)
    with torch.no_grad():
        expected = model(torch.tensor(token_ids[None])).logits[0].numpy()
    assert relative_error(logits, expected) < TOLERANCES["logits_float32"]


def _predict(folder: Path, size: int, *options: str) -> str:
    split = ["--use_parallel", "True", "--parallel_config.model_parallel", str(size)]
    argv = [*CARD, *split, "--pretrained_model_dir", str(folder), *options]
    return f"{REPO / 'run_mindformer.py'} {' '.join(argv)}"


def test_predict_writes_and_prints_once(
    launch: Launcher, work: Path, folders: dict[str, Path]
) -> None:
    prompts = ["hello", "b", "hello"]
    (work / "questions.txt").write_text("\n".join(prompts))
    options = ("--predict_data", "questions.txt", "--max_new_tokens", "6")
    ended = launch(_predict(folders["cut"], 2, "--predict_batch_size", "2", *options), "2").wait(
        timeout_s=200
    )
    assert ended.exit_code == 0, ended.stderr
    results = ast.literal_eval((work / "text_generation_result.txt").read_text())
    assert len(results) == 3
    assert results[0] == results[2]
    assert [ast.literal_eval(line) for line in ended.stdout.splitlines()] == results
    assert sorted(path.name for path in work.iterdir() if path.is_file()) == [
        "fake_worker.py",
        "questions.txt",
        "text_generation_result.txt",
    ]
    (log,) = work.rglob("worker_1.log")
    assert "mindformers_glm: " not in log.read_text()
    assert "text_generation_text" not in log.read_text()


@pytest.mark.parametrize(
    ("name", "size", "options", "message"),
    [
        ("sandwich", 2, (), "auto_trans_ckpt False needs a folder that scripts/process_weights.py"),
        ("cut", 4, (), "was cut for model_parallel 2, not 4"),
        ("sandwich", 3, ("--auto_trans_ckpt", "True"), "model_parallel 3 cannot split this model"),
    ],
)
def test_what_cannot_be_split_so_is_one_sentence(
    launch: Launcher,
    work: Path,
    folders: dict[str, Path],
    name: str,
    size: int,
    options: tuple[str, ...],
    message: str,
) -> None:
    command = _predict(folders[name], size, "--predict_data", "hello", *options)
    ended = launch(command, str(size)).wait(timeout_s=100)
    assert ended.exit_code != 0
    assert message in ended.stderr
    assert not (work / "text_generation_result.txt").exists()


def test_an_error_of_one_rank_ends_the_job(
    launch: Launcher, folders: dict[str, Path], tmp_path: Path
) -> None:
    broken = Path(shutil.copytree(folders["cut"], tmp_path / "broken"))
    (broken / "model-rank-01-of-02.safetensors").unlink()
    ended = launch(_predict(broken, 2, "--predict_data", "hello"), "2").wait(timeout_s=100)
    assert ended.exit_code != 0
    assert "lacks model-rank-01-of-02.safetensors" in ended.stderr
