"""Upstream's network split over processes, which MindSpore's own group on the CPU connects."""

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.ascend_contract import split_worker
from tests.conftest import MINI, relative_error
from tests.model import hf_oracle
from tests.model.chatglm_layout import to_chatglm
from tests.tp.launched import Job

pytestmark = pytest.mark.tp
# Of 4 ranks each has a half of the 4 groups' inner columns of another, and a copy of a KV head.
CHANGES = {"vocab_size": 520, "num_attention_heads": 8, "intermediate_size": 1096}
Found = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    sandwich = hf_oracle.save_random_checkpoint(root / "sandwich", **CHANGES)
    pre_norm = hf_oracle.save_random_checkpoint(root / "pre_norm", model_type="glm", **CHANGES)
    chatglm = to_chatglm(pre_norm, root / "chatglm")
    return {"sandwich": sandwich, "chatglm": chatglm, "pre_norm": pre_norm, "glm4-mini": MINI}


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> dict[str, Found]:
    """What a single process answers."""
    names = ("sandwich", "chatglm", "glm4-mini")
    with split_worker.ascend_in_a_job(1):
        return {name: split_worker.run(folders[name], 1) for name in names}


@pytest.mark.parametrize(
    ("size", "names"),
    [
        (2, ["sandwich", "chatglm", "glm4-mini"]),
        pytest.param(4, ["sandwich", "chatglm"], marks=pytest.mark.slow),
    ],
)
def test_ranks_answer_as_one_process_and_hugging_face_do(
    size: int,
    names: list[str],
    folders: dict[str, Path],
    alone: dict[str, Found],
    tmp_path: Path,
) -> None:
    command = f"{split_worker.__file__} {size} {' '.join(str(folders[name]) for name in names)}"
    ended = Job(tmp_path, command, str(size), GLOG_v="3").wait(timeout_s=300)
    assert ended.exit_code == 0, ended.stderr[-2000:]
    for name in names:
        ranks = [dict(np.load(tmp_path / f"{name}-{size}-{rank}.npz")) for rank in range(size)]
        source = folders["pre_norm" if name == "chatglm" else name]
        check(ranks, alone[name], hf_oracle.logits(source, split_worker.PROMPT))
    answers = ast.literal_eval((tmp_path / "text_generation_result.txt").read_text("utf-8"))
    assert answers_of(answers) == alone[names[0]]["texts"].tolist()


def check(ranks: list[Found], alone: Found, expected_logits: np.ndarray) -> None:
    for found in ranks:
        assert found["tokens"].tolist() == alone["tokens"].tolist()
        assert relative_error(found["logits"], alone["logits"]) < 1e-5
        assert relative_error(found["logits"], expected_logits) < 1e-5
        # Every rank has the logits of the whole vocabulary, bit for bit, to sample by itself.
        np.testing.assert_array_equal(found["logits"], ranks[0]["logits"])
        # Steps of 16 rows have at most one sampled row of each of 3 sequences, and its guesses.
        assert found["sampled_rows"].max() <= 3 * (1 + split_worker.NUM_GUESSES)
        assert found["sampled_rows"].tolist() == alone["sampled_rows"].tolist()


def answers_of(results: list[dict[str, Any]]) -> list[str]:
    return [result["text_generation_text"][0] for result in results]
