"""KL, agreement and perplexity against their definitions in float64, over pieces of any length."""

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindformers_glm.core.errors import CheckpointError
from mindformers_glm.evaluation.logit_quality import LogitQuality, MeasuredText, keep_logits

_SAMPLES = [[3, 1, 4, 1, 5], [9], [2, 6]]
_TEXTS = [MeasuredText(sample) for sample in _SAMPLES]
_VOCABULARY = 11


class FakeModel:
    """Says what it was given, in pieces of three rows (as `LLM.logits_chunks` does)."""

    def __init__(self, logits: list[np.ndarray]) -> None:
        self._logits = {len(rows): rows for rows in logits}

    def logits_chunks(self, token_ids: Sequence[int]) -> Generator[np.ndarray, None, None]:
        rows = self._logits[len(token_ids)]
        for begin in range(0, len(rows), 3):
            yield rows[begin : begin + 3]


def _draw(seed: int, width: int = _VOCABULARY) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(0, 5, (len(ids), width)).astype(np.float32) for ids in _SAMPLES]


def _compare(
    reference: list[np.ndarray],
    other: list[np.ndarray],
    folder: Path,
    texts: list[MeasuredText] = _TEXTS,
) -> LogitQuality:
    models: list[Any] = [FakeModel(reference), FakeModel(other)]
    with keep_logits(models[0], texts, folder) as kept:
        kept.compare(models[1])  # may be asked several times
        return kept.compare(models[1])


def test_figures_are_those_of_the_definition(tmp_path: Path) -> None:
    reference, other = _draw(0), _draw(1)
    found = _compare(reference, other, tmp_path)
    p, q = (np.exp(np.concatenate(logits).astype(np.float64)) for logits in (reference, other))
    p, q = (x / x.sum(axis=1, keepdims=True) for x in (p, q))
    assert found.num_positions == 8
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-6)
    assert found.agreement == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    # Position -> the token that follows it in its own text.
    following = {0: 1, 1: 4, 2: 1, 3: 5, 6: 6}
    for probabilities, perplexity in ((p, found.reference_perplexity), (q, found.perplexity)):
        surprise = [-np.log(probabilities[place, token]) for place, token in following.items()]
        assert perplexity == pytest.approx(np.exp(np.mean(surprise)), rel=1e-6)


def test_a_model_is_itself(tmp_path: Path) -> None:
    found = _compare(_draw(0), _draw(0), tmp_path)
    assert (found.kl, found.agreement) == (0, 1)
    assert found.perplexity == found.reference_perplexity
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("first", [1, 3, 4])
def test_positions_before_the_first_do_not_count(first: int, tmp_path: Path) -> None:
    reference, other = _draw(0), _draw(1)
    found = _compare(reference, other, tmp_path, [MeasuredText(_SAMPLES[0], first)])
    p, q = (np.exp(logits[0][first:].astype(np.float64)) for logits in (reference, other))
    p, q = (x / x.sum(axis=1, keepdims=True) for x in (p, q))
    assert found.num_positions == 5 - first
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(axis=1).mean(), rel=1e-6)
    following = _SAMPLES[0][first + 1 :]
    if following:
        surprise = -np.log(q[np.arange(len(following)), following]).mean()
        assert found.perplexity == pytest.approx(np.exp(surprise), rel=1e-6)
    else:
        assert found.perplexity is None


def test_another_vocabulary_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="vocabularies of different sizes"):
        _compare(_draw(0), _draw(0, _VOCABULARY + 1), tmp_path)


def test_logits_that_are_no_numbers_are_told(tmp_path: Path) -> None:
    broken = _draw(0)
    broken[0][1, 2] = np.nan
    with pytest.raises(CheckpointError, match="no numbers"):
        _compare(_draw(0), broken, tmp_path)
