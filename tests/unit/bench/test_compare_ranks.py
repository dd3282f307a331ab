"""When compare_ranks.py calls answers equal."""

import numpy as np
from compare_ranks import CHECKPOINTS, compare_answers, compare_tokens, relative_error

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import can_split

LOGITS = np.float32([[0, 3, 1, 0], [2, 0, 1.99, 0], [0, 0, 0, 4]])
EXPECTED = np.array([1, 0, 3])


def test_tokens_may_part_only_where_two_logits_are_close() -> None:
    assert compare_tokens(EXPECTED, EXPECTED, LOGITS, 1e-9) == (3, True)
    close = np.array([1, 2, 0])
    assert compare_tokens(close, EXPECTED, LOGITS, 1e-2) == (1, True)
    assert compare_tokens(close, EXPECTED, LOGITS, 1e-3) == (1, False)
    assert compare_tokens(np.array([2, 0, 3]), EXPECTED, LOGITS, 1e-2) == (0, False)


def test_the_worst_rank_counts(tmp_path) -> None:
    expected = {"logits": LOGITS, "tokens 0": EXPECTED, "logits 0": LOGITS}
    for name, scale in (("x-0", 1), ("x-1", 1.01)):
        np.savez(tmp_path / f"{name}.npz", **expected | {"logits": LOGITS * scale})
    assert relative_error(LOGITS * np.float32(1.01), LOGITS) < 0.0101
    assert compare_answers(tmp_path, tmp_path, "x", 2, 2e-2)[0]
    is_good, text = compare_answers(tmp_path, tmp_path, "x", 2, 1e-3)
    assert not is_good
    assert "6 of 6 tokens  TOO FAR" in text


def test_the_checkpoints_can_be_split_and_are_multiples_of_no_group() -> None:
    assert len(CHECKPOINTS) == 10
    for name, keys in CHECKPOINTS.items():
        config = GlmConfig.from_dict(keys, source=name)
        assert can_split(config, 2)
        assert can_split(config, 4)
        assert config.intermediate_size % 128
        assert config.vocab_size % 8
