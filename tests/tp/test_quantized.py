"""A split model that is quantized while it is loaded answers as one process does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.weights.share_writer import write_shares
from tests.conftest import relative_error
from tests.tp.conftest import Launcher
from tests.tp.launched import REPO

pytest.importorskip("mindspore")
pytest.importorskip("torch")

pytestmark = pytest.mark.tp
WORKER = Path(__file__).parent / "quantized_worker.py"
# Groups of 128 columns lie across the heads of several ranks, 300 inner columns are two groups and
# a part of one, and the vocabulary is odd.
CHANGES = {
    "vocab_size": 521,
    "num_attention_heads": 8,
    "head_dim": 24,
    "intermediate_size": 300,
    "tie_word_embeddings": True,
}
# By the number of ranks: what runs on the whole folder, and what on one that is cut for them.
FORMATS = {
    2: (["w8a8_dynamic", "w4a16"], ["w8a16", "w4a8_dynamic"]),
    4: (["w4a8_dynamic"], ["w8a8_dynamic"]),
}
# Of one process's logits: sums in another order, and where 8 bits round the other way for it.
BOUNDS = {"16": 1e-3, "c": 2e-2}  # by the last letters of the format


@pytest.mark.parametrize("size", FORMATS)
def test_ranks_answer_as_one_process_does(
    launch: Launcher, work: Path, tmp_path: Path, size: int
) -> None:
    from tests.model.hf_oracle import save_random_checkpoint

    whole = save_random_checkpoint(tmp_path / "whole", **CHANGES)
    write_shares(whole, tmp_path / "cut", size)
    shutil.copy(WORKER, work)
    of_whole, of_cut = (",".join(formats) for formats in FORMATS[size])
    environment = os.environ | {"PYTHONPATH": str(REPO), "GLOG_v": "3"}
    alone = [sys.executable, WORKER.name, "1", f"{whole}={of_whole},{of_cut}"]
    subprocess.run(alone, cwd=work, env=environment, check=True)
    command = f"{WORKER.name} {size} {whole}={of_whole} {tmp_path / 'cut'}={of_cut}"
    ended = launch(command, str(size), GLOG_v="3").wait(timeout_s=300)
    assert ended.exit_code == 0, ended.stderr
    for name in f"{of_whole},{of_cut}".split(","):
        expected = np.load(work / f"{name}-1-0.npz")
        bound = next(bound for end, bound in BOUNDS.items() if name.endswith(end))
        ranks = [np.load(work / f"{name}-{size}-{rank}.npz") for rank in range(size)]
        for found in ranks:
            assert found["logits"].shape == (37, 521)
            assert relative_error(found["logits"], expected["logits"]) < bound, name
            _assert_equal_or_close(found["tokens"], expected, bound)
            np.testing.assert_array_equal(found["logits"], ranks[0]["logits"])  # every bit


# Groups of 128 columns lie across the ranks' heads, and g_idx sends columns anywhere (as float).
STORED = {"slim-w4a16": 1e-3, "gptq-v2-reordered-asymmetric": 1e-4}


def test_ranks_share_a_folder_that_is_quantized_already(
    launch: Launcher, work: Path, tmp_path: Path
) -> None:
    from tests import quantized_folders
    from tests.model.hf_oracle import save_random_checkpoint

    sizes = CHANGES | {"intermediate_size": 320, "tie_word_embeddings": False}
    whole = save_random_checkpoint(tmp_path / "whole", **sizes)
    for name in STORED:
        quantized_folders.write(whole, tmp_path / name, quantized_folders.WEIGHT_ONLY[name])
    shutil.copy(WORKER, work)
    environment = os.environ | {"PYTHONPATH": str(REPO), "GLOG_v": "3"}
    wanted = [f"{tmp_path / name}={name}" for name in STORED]
    alone = [sys.executable, WORKER.name, "1", *wanted]
    subprocess.run(alone, cwd=work, env=environment, check=True)
    ended = launch(f"{WORKER.name} 2 {' '.join(wanted)}", "2", GLOG_v="3").wait(timeout_s=300)
    assert ended.exit_code == 0, ended.stderr
    for name, bound in STORED.items():
        expected = np.load(work / f"{name}-1-0.npz")
        for rank in range(2):
            found = np.load(work / f"{name}-2-{rank}.npz")
            assert relative_error(found["logits"], expected["logits"]) < bound, name
            _assert_equal_or_close(found["tokens"], expected, bound)


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_share_an_int8_kv_cache(
    launch: Launcher, work: Path, tmp_path: Path, size: int
) -> None:
    """Two KV heads: one for each rank, or each on two; with scales of tokens, and of channels."""
    from tests import quantized_folders
    from tests.model.hf_oracle import save_random_checkpoint

    sizes = CHANGES | {"intermediate_size": 320, "tie_word_embeddings": False}
    whole = save_random_checkpoint(tmp_path / "whole", **sizes)
    quantized_folders.write_kv_scales(whole, tmp_path / "c8", is_symmetric=False)
    shutil.copy(WORKER, work)
    environment = os.environ | {"PYTHONPATH": str(REPO), "GLOG_v": "3"}
    wanted = [f"{whole}=kv-int8", f"{tmp_path / 'c8'}=c8"]
    subprocess.run(
        [sys.executable, WORKER.name, "1", *wanted], cwd=work, env=environment, check=True
    )
    command = f"{WORKER.name} {size} {' '.join(wanted)}"
    ended = launch(command, str(size), GLOG_v="3").wait(timeout_s=300)
    assert ended.exit_code == 0, ended.stderr
    for name in ("kv-int8", "c8"):
        expected = np.load(work / f"{name}-1-0.npz")
        for rank in range(size):
            found = np.load(work / f"{name}-{size}-{rank}.npz")
            assert relative_error(found["logits"], expected["logits"]) < 1e-2, name
            _assert_equal_or_close(found["tokens"], expected, 1e-2)


def _assert_equal_or_close(
    tokens: np.ndarray, expected: np.lib.npyio.NpzFile, bound: float
) -> None:
    """They may part where the two best logits are closer than the bound."""
    if (differs := tokens != expected["tokens"]).any():
        row = np.sort(expected["next"][differs.argmax()])
        assert row[-1] - row[-2] <= bound * np.linalg.norm(row) / np.sqrt(len(row))
