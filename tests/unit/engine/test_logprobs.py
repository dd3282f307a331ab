"""Log-probabilities against torch's log_softmax and topk."""

import numpy as np
import pytest

from mindformers_glm.engine.logprobs import Logprob, list_logprobs


def _name(token_id: int) -> str:
    return f"<{token_id}>"


def _logits(size: int, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(size).normal(0, scale, size).astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 50, 5000])
@pytest.mark.parametrize("count", [0, 1, 5, 20, -1])
@pytest.mark.parametrize("scale", [1e-3, 3.0, 1e4])
def test_values_ranks_and_likeliest_tokens_are_those_of_torch(
    size: int, count: int, scale: float
) -> None:
    torch = pytest.importorskip("torch")
    logits = _logits(size, scale)
    expected = torch.log_softmax(torch.from_numpy(logits).double(), -1)
    likeliest = torch.topk(expected, size if count < 0 else min(count, size)).indices.tolist()
    for token_id in {0, size // 2, size - 1, int(logits.argmax()), int(logits.argmin())}:
        found = list_logprobs(logits, token_id, count, _name)
        assert list(found) == [token_id, *(i for i in likeliest if i != token_id)]
        for listed, entry in found.items():
            assert entry.logprob == pytest.approx(float(expected[listed]), rel=1e-6, abs=1e-6)
            assert entry.rank == int((expected > expected[listed]).sum()) + 1
            assert entry.decoded_token == _name(listed)


def test_of_equals_the_lower_id_comes_first() -> None:
    logits = np.array([1.0, 2.0, 1.0, 2.0, 1.0], np.float32)
    found = list_logprobs(logits, 4, 3, _name)
    assert [(token_id, entry.rank) for token_id, entry in found.items()] == [
        *[(4, 5), (1, 1), (3, 2), (0, 3)]
    ]


def test_what_cannot_be_is_minus_infinity_or_very_low_and_never_nan() -> None:
    logits = np.array([0.0, -1e30, 1e30], np.float32)
    found = list_logprobs(logits, 1, -1, _name)
    assert found[2] == Logprob(0.0, 1, "<2>")
    assert found[0].logprob < -1e29 > found[1].logprob


def test_logits_are_not_changed() -> None:
    logits = _logits(20)
    before = logits.copy()
    list_logprobs(logits, 3, 5, _name)
    np.testing.assert_array_equal(logits, before)
