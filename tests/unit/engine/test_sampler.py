"""The oracle is transformers' own processors, on the same logits."""

import copy
import itertools
from typing import Any

import numpy as np
import pytest

from mindformers_glm.engine import sampler
from mindformers_glm.engine.generation_defaults import GenerationDefaults
from mindformers_glm.engine.logit_changes import penalize_repetition
from mindformers_glm.engine.sampler import (
    NonFiniteLogitsError,
    draw_index,
    sample_token,
    weigh_candidates,
)
from mindformers_glm.engine.sampling_params import SamplingParams
from tests.unit.engine.make_sequence import make_sequence


def _logits(size: int, seed: int = 0, scale: float = 3.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, scale, size).astype(np.float32)


def _draw(scores: np.ndarray, rng: np.random.Generator) -> int:
    return draw_index(np.exp(scores - scores.max()), rng)


def _kept_by_transformers(logits: np.ndarray, **params: Any) -> dict[int, float]:
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as hf

    # The order of transformers 4.51.3, generation/utils.py.
    warpers = [
        hf.TemperatureLogitsWarper(float(params.get("temperature", 1.0))),
        hf.TopKLogitsWarper(params["top_k"]) if params.get("top_k") else None,
        hf.TopPLogitsWarper(params["top_p"]) if params.get("top_p", 1.0) < 1 else None,
        hf.MinPLogitsWarper(params["min_p"]) if params.get("min_p") else None,
    ]
    scores = torch.from_numpy(logits)[None]
    for warper in warpers:
        if warper is not None:
            scores = warper(None, scores)
    scores = scores[0].numpy()
    return {int(i): float(scores[i]) for i in np.flatnonzero(np.isfinite(scores))}


def _kept_by_us(logits: np.ndarray, **params: Any) -> dict[int, float]:
    settings = GenerationDefaults().resolve(SamplingParams(**({"top_k": 0} | params)))
    candidates = weigh_candidates(logits, settings)
    is_kept = candidates.is_kept
    token_ids, scores = candidates.token_ids[is_kept], candidates.scores[is_kept]
    assert np.all(np.diff(token_ids) > 0)
    return dict(zip(token_ids.tolist(), scores.tolist(), strict=True))


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.7},
        {"top_k": 1},
        {"top_k": 50},
        {"top_k": 10_000},
        {"top_p": 0.8},
        {"top_p": 0.001},
        {"top_p": 0.9999},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"temperature": 0.6, "top_k": 40, "top_p": 0.95},
        {"temperature": 1.7, "top_k": 20, "top_p": 0.5, "min_p": 0.1},
        {"temperature": 5.0, "top_p": 0.9, "min_p": 0.01},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [7, 5000])
def test_kept_tokens_and_scores_are_those_of_transformers(
    params: dict[str, Any], seed: int, size: int
) -> None:
    logits = _logits(size, seed)
    assert _kept_by_us(logits, **params) == _kept_by_transformers(logits, **params)


@pytest.mark.parametrize(
    "params",
    [{"top_k": 3}, {"top_p": 0.5}, {"top_p": 0.85}, {"top_k": 4, "top_p": 0.613}, {"min_p": 0.5}],
    ids=str,
)
@pytest.mark.parametrize("seed", range(5))
def test_ties_are_kept_as_transformers_keeps_them(params: dict[str, Any], seed: int) -> None:
    # Only four different values among 40 tokens; top_p away from sums where rounding decides.
    logits = np.random.default_rng(seed).choice([0.1, 0.9, 1.7, 2.3], 40).astype(np.float32)
    ours, theirs = _kept_by_us(logits, **params), _kept_by_transformers(logits, **params)
    # torch.sort is not stable: which of equals top_p cuts is left open, how many is not.
    assert sorted(ours.values()) == sorted(theirs.values())
    if "top_p" not in params:
        assert ours == theirs


def _kept_by_definition(logits: np.ndarray, top_k: int, top_p: float) -> list[int]:
    """Best tokens first, the higher id of equals, until what came before sums to top_p."""
    kth_best = np.sort(logits)[-top_k] if top_k else -np.inf
    best_first = np.lexsort((np.arange(len(logits)), logits))[::-1]
    token_ids = [int(i) for i in best_first if logits[i] >= kth_best]
    if top_p == 1.0:
        return sorted(token_ids)
    weights = np.exp(logits[token_ids] - logits.max()).astype(np.float64)
    before = np.cumsum(weights) - weights
    num_kept = max(1, np.count_nonzero(before < top_p * weights.sum()))
    return sorted(token_ids[:num_kept])


@pytest.mark.parametrize("guess", [2, 1024])
@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [(0, 0.0), (0, 0.3), (0, 0.8), (0, 0.95), (0, 0.9999), (5, 1.0), (700, 0.9), (6000, 0.99)],
)
@pytest.mark.parametrize(
    "kind",
    ["flat", "equal", "few values", "peaked", "one far ahead", "forbidden", "narrow", "wide"],
)
def test_what_is_kept_is_that_of_the_definition(
    kind: str, top_k: int, top_p: float, guess: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "_FIRST_NUCLEUS_GUESS", guess)
    rng = np.random.default_rng(3)
    logits = {
        "flat": _logits(20_011, scale=0.5),
        "equal": np.full(20_011, 1.5),
        "few values": rng.choice([0.25, 0.5, 1.0, 1.0078125, 2.5], 20_011),
        "peaked": _logits(20_011, scale=4.0),
        "one far ahead": np.append(_logits(20_010), 200.0),
        "forbidden": np.where(rng.random(20_011) < 0.5, -np.inf, _logits(20_011, scale=0.5)),
        "narrow": _logits(20_011, scale=1e-4),
        "wide": _logits(20_011, scale=50.0),
    }[kind].astype(np.float32)
    assert list(_kept_by_us(logits, top_k=top_k, top_p=top_p)) == _kept_by_definition(
        logits, top_k, top_p
    )


def _make_rows(rng: np.random.Generator, size: int) -> dict[str, np.ndarray]:
    normal = rng.normal(0, 1, size)
    rows = {
        "flat": 0.5 * normal,
        "peaked": 4.0 * normal,
        "far below one": np.append(normal[1:], normal.max() + 12.0),
        "equal": np.full(size, normal[0]),
        "many ties": np.round(normal * 8) / 8,
        "almost equal": 20.0 + 1e-5 * normal,
        "forbidden": np.where(np.arange(size) % 3 == 1, -np.inf, 0.5 * normal),
        "huge spread": 1e4 * normal,
    }
    return {kind: row.astype(np.float32) for kind, row in rows.items()}


@pytest.mark.parametrize("size", [1, 2, 17, 1025, 2049, 6145, 20_011])
def test_any_row_keeps_what_a_full_sort_keeps(size: int) -> None:
    rng = np.random.default_rng(size)
    top_ks = [0, 1, 37, size // 3, size - 1]
    top_ps = [1e-9, rng.uniform(), rng.uniform(0.9, 1.0), 1 - 1e-7]
    for kind, logits in _make_rows(rng, size).items():
        for top_k, top_p in itertools.product(top_ks, top_ps):
            if top_k <= size:
                found = list(_kept_by_us(logits, top_k=top_k, top_p=top_p))
                assert found == _kept_by_definition(logits, top_k, top_p), (kind, top_k, top_p)


@pytest.mark.parametrize("top_k", [1, 8, 50, 512, 513, 1024])
@pytest.mark.parametrize("size", [1025, 1087, 6400])
def test_top_k_keeps_the_kth_best_and_its_equals(size: int, top_k: int) -> None:
    # Sorted: the best ones are among the last, which may be of no group.
    for logits in (_logits(size), np.round(_logits(size)), np.sort(_logits(size))):
        expected = np.flatnonzero(logits >= np.sort(logits)[-top_k])
        assert list(_kept_by_us(logits, top_k=top_k)) == expected.tolist()


def test_all_tokens_stay_where_rounding_keeps_their_sum_below_top_p() -> None:
    logits = _logits(20_011, scale=0.5)
    weights = np.exp(logits - logits.max())
    too_much = 1.000001 * weights.sum(dtype=np.float64)
    assert sampler._mark_nucleus(logits, weights, too_much).all()


def test_no_token_stays_after_those_that_sum_to_top_p_exactly() -> None:
    logits = np.append(np.zeros(2500), np.full(500, -1.0)).astype(np.float32)
    found = sampler._mark_nucleus(logits, np.exp(logits), 2500.0)
    assert np.flatnonzero(found).tolist() == list(range(2500))


@pytest.mark.parametrize("size", [17, 3000])
@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_min_p_takes_tokens_out_of_the_nucleus(size: int, scale: float) -> None:
    logits = _logits(size, scale=scale)
    kept = _kept_by_us(logits, top_p=0.9, min_p=0.5)
    assert len(kept) < len(_kept_by_us(logits, top_p=0.9))
    assert kept == _kept_by_transformers(logits, top_p=0.9, min_p=0.5)


@pytest.mark.parametrize("num_first", [1, 1500])
def test_zeros_of_both_signs_are_equals(num_first: int) -> None:
    logits = np.zeros(3000, np.float32)
    logits[:num_first] = -0.0
    for row in (logits, -logits):
        assert list(_kept_by_us(row, top_p=0.5001)) == list(range(1499, 3000))


def test_a_nucleus_beyond_the_first_guess_is_that_of_transformers() -> None:
    logits = _logits(3000, scale=0.5)
    expected = _kept_by_us(logits, top_p=0.9)
    assert len(expected) > 1024
    assert expected == _kept_by_transformers(logits, top_p=0.9)


def test_forbidden_tokens_stay_forbidden() -> None:
    logits = _logits(20)
    logits[[3, 5]] = -np.inf
    kept = _kept_by_us(logits, top_k=20, top_p=0.999)
    assert kept == _kept_by_transformers(logits, top_k=20, top_p=0.999)
    assert not {3, 5} & kept.keys()


@pytest.mark.parametrize("penalty", [1.2, 0.8])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    torch = pytest.importorskip("torch")
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    logits, history = _logits(50), np.array([3, 7, 3, 3, 49, 0], np.int32)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(
        torch.from_numpy(history.astype(np.int64))[None], torch.from_numpy(logits)[None]
    )
    found = penalize_repetition(logits, history, penalty)
    np.testing.assert_array_equal(found, expected[0].numpy())


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    logits = np.array([1.0, 0.95, 0.9, 0.8], np.float32)
    assert sample_token(logits, make_sequence([0], [1], repetition_penalty=2.0)) == 2


def test_greedy_takes_the_first_of_equals() -> None:
    logits = np.array([0.0, 2.0, 1.0, 2.0], np.float32)
    assert sample_token(logits, make_sequence(1)) == 1


def test_greedy_ignores_top_k_and_temperature() -> None:
    logits = _logits(100)
    sequence = make_sequence(1, do_sample=False, temperature=100.0, top_k=2)
    assert sample_token(logits, sequence) == int(np.argmax(logits))


def test_no_stop_token_before_min_new_tokens() -> None:
    logits = np.array([5.0, 4.0, 3.0], np.float32)
    one_missing = make_sequence(1, generated=[2], stop=[0, 1], min_new_tokens=2)
    assert sample_token(logits, one_missing) == 2
    enough = make_sequence(1, generated=[2, 2], stop=[0, 1], min_new_tokens=2)
    assert sample_token(logits, enough) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_refused(bad: float) -> None:
    logits = _logits(10)
    logits[4] = bad
    with pytest.raises(NonFiniteLogitsError):
        sample_token(logits, make_sequence(1))


def test_logits_are_not_changed() -> None:
    logits = _logits(10)
    before = logits.copy()
    sample_token(
        logits,
        make_sequence(3, stop=[1], min_new_tokens=1, repetition_penalty=1.5, temperature=0.5),
    )
    np.testing.assert_array_equal(logits, before)


def test_the_same_seed_draws_the_same_tokens() -> None:
    rows = [_logits(100, seed) for seed in range(20)]

    def draw(seed: int) -> list[int]:
        sequence = make_sequence(1, do_sample=True, seed=seed)
        return [sample_token(row, sequence) for row in rows]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_draws_follow_the_softmax() -> None:
    scores = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    rng = np.random.default_rng(0)
    count = 20_000
    drawn = [_draw(scores, rng) for _ in range(count)]
    found = np.array([drawn.count(index) for index in range(4)])
    expected = np.array([0.5, 0.3, 0.15, 0.05]) * count
    chi_square = ((found - expected) ** 2 / expected).sum()
    assert chi_square < 16.3  # 99.9 % quantile of 3 degrees of freedom


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    class Edge:
        """Draws the two ends of the interval."""

        def __init__(self, value: float) -> None:
            self._value = value

        def random(self) -> float:
            return self._value

    scores = np.array([-np.inf, 0.0, 0.0, -np.inf], np.float32)
    for value, expected in ((0.0, 1), (np.nextafter(1.0, 0.0), 2)):
        assert _draw(scores, Edge(value)) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"top_k": 700},
        {"top_p": 0.9},
        {"min_p": 0.1},
        {"top_p": 0.9, "min_p": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 2, 17, 511, 512, 513, 1025, 20_011])
def test_draws_are_those_of_one_running_sum(size: int, params: dict[str, Any]) -> None:
    params = {"top_k": 0} | params
    sequence = make_sequence(1, do_sample=True, seed=5, **params)
    rng = np.random.default_rng(size)
    for kind, logits in _make_rows(rng, size).items():
        if kind == "forbidden":
            continue
        kept = _kept_by_us(logits, **params)
        scores = np.array(list(kept.values()), np.float32)
        sums = np.cumsum(np.exp(scores - scores.max()), dtype=np.float64)
        for _ in range(3):
            generator = copy.deepcopy(sequence.rng)
            index = np.searchsorted(sums, generator.random() * sums[-1], side="right")
            assert sample_token(logits, sequence) == list(kept)[index], kind
            assert sequence.rng.random() == generator.random()


def test_a_draw_that_rounding_puts_beyond_its_block_takes_a_token_of_the_block() -> None:
    class AlmostOne:
        def random(self) -> float:
            return float(np.nextafter(1.0, 0.0))

    num_beyond = 0
    for seed in range(50):
        scores = _logits(600, seed, scale=10.0)
        scores[490:] = -np.inf
        weights = np.exp(scores - scores.max()).astype(np.float64)
        num_beyond += weights[:512].sum() > np.cumsum(weights)[511]  # the order differs
        drawn = _draw(scores, AlmostOne())  # type: ignore[arg-type]
        assert weights[drawn] > 0
    assert num_beyond > 0


def test_blocks_without_weight_are_never_drawn_from() -> None:
    scores = np.full(5000, -np.inf, np.float32)
    scores[[2100, 2101, 3500]] = 0.0
    rng = np.random.default_rng(0)
    drawn = [_draw(scores, rng) for _ in range(300)]
    assert set(drawn) == {2100, 2101, 3500}

    class Zero:
        def random(self) -> float:
            return 0.0

    assert _draw(scores, Zero()) == 2100  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("params", [{}, {"top_p": 0.5}, {"top_k": 2}, {"min_p": 0.5}], ids=str)
@pytest.mark.parametrize("size", [3, 3000])
def test_a_row_of_which_all_is_forbidden_gives_some_token(
    size: int, params: dict[str, Any]
) -> None:
    sequence = make_sequence(1, stop=range(size), min_new_tokens=1, do_sample=True, **params)
    assert sample_token(_logits(size), sequence) in range(size)


@pytest.mark.parametrize("temperature", [1e-320, 1e-40, 1e40, 1e308])
@pytest.mark.parametrize("penalty", [1e-308, 1.0, 1e308])
@pytest.mark.parametrize("limits", [{"top_k": 3}, {"top_p": 0.9}, {"min_p": 0.1}, {}])
def test_settings_beyond_float32_still_draw_an_allowed_token(
    temperature: float, penalty: float, limits: dict[str, Any]
) -> None:
    changes = {"temperature": temperature, "repetition_penalty": penalty}
    sequence = make_sequence([1, 2, 3], do_sample=True, **changes, **limits)
    allowed = np.zeros(4096, bool)
    allowed[[2, 3, 70]] = True
    for seed, sign in enumerate((1, -1)):
        logits = sign * np.abs(_logits(4096, seed))
        with np.errstate(all="raise", under="ignore"):
            assert sample_token(logits, sequence, allowed) in (2, 3, 70)


def test_a_score_beyond_float32_is_an_error() -> None:
    sequence = make_sequence([1], do_sample=True, temperature=0.5)
    with np.errstate(over="ignore"), pytest.raises(NonFiniteLogitsError):
        sample_token(np.full(8, 3e38, np.float32), sequence)
