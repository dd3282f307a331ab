import time

import numpy as np
import pytest

from mindformers_glm.engine.prompt_lookup import PromptLookup


def _propose(token_ids: list[int], limit: int = 100, max_draft_len: int = 4) -> list[int]:
    return PromptLookup(max_draft_len).propose(np.array(token_ids, np.int32), limit)


def test_a_draft_is_what_followed_the_same_tokens_before() -> None:
    assert _propose([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3]) == [4, 5, 6, 7]


def test_the_last_occurrence_counts() -> None:
    assert _propose([1, 2, 3, 4, 9, 1, 2, 3, 5, 9, 9, 9, 1, 2, 3])[0] == 5


def test_two_equal_tokens_are_enough_and_one_is_not() -> None:
    assert _propose([7, 1, 2, 3, 4, 8, 8, 2, 3], max_draft_len=1) == [4]
    assert _propose([2, 3, 4, 9, 2, 3], max_draft_len=1) == [4]  # the first two of all
    assert _propose([7, 1, 2, 3, 4, 8, 8, 8, 3]) == []


def test_three_equal_tokens_count_more_than_two() -> None:
    assert _propose([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], max_draft_len=1) == [4]


def test_pairs_count_until_two_guesses_were_wrong() -> None:
    lookup = PromptLookup(4)
    text = [1, 2, 3]
    for num_accepted, is_tried in ((0, True), (1, True), (0, True), (0, False)):
        text += [10 + len(text), 2, 3]  # no three tokens of it occur twice
        draft = lookup.propose(np.array(text, np.int32), 4)
        assert bool(draft) == is_tried
        if draft:
            lookup.learn(len(draft), num_accepted)
    text += text[3:6]
    assert lookup.propose(np.array(text, np.int32), 4), "three equal tokens count all the same"


def test_a_wrong_guess_after_a_pair_makes_no_pause_and_no_shorter_draft() -> None:
    lookup = PromptLookup(4)
    lookup.propose(np.array([1, 2, 3, 4, 5, 6, 7, 2, 3], np.int32), 4)
    lookup.learn(4, 0)
    assert lookup.propose(np.array([1, 2, 3, 4, 5, 6, 7, 2, 3, 4, 5], np.int32), 9) == [6, 7, 2, 3]


def test_a_repetition_goes_on_beyond_the_end_of_the_text() -> None:
    assert _propose([9, 1, 2, 3, 1, 2, 3]) == [1, 2, 3, 1]
    assert _propose([9, 5, 5, 5, 5]) == [5, 5, 5, 5]


@pytest.mark.parametrize("text", [[1], [1, 2], [1, 1], [1, 2, 1], [1, 2, 3, 4]])
def test_nothing_is_proposed_without_an_earlier_occurrence(text: list[int]) -> None:
    assert _propose(text) == []


@pytest.mark.parametrize("limit", [-1, 0, 1, 3])
def test_a_draft_keeps_to_the_limit(limit: int) -> None:
    assert _propose([1, 2, 3, 4, 5, 6, 1, 2, 3], limit) == [4, 5, 6][: max(limit, 0)]


def test_the_text_may_grow_between_proposals() -> None:
    lookup = PromptLookup(2)
    rng = np.random.default_rng(0)
    text = rng.integers(0, 4, 300).astype(np.int32)
    for end in range(1, 300, 7):
        assert lookup.propose(text[:end], 2) == PromptLookup(2).propose(text[:end], 2)


def test_drafts_grow_while_they_are_right_and_shrink_when_not() -> None:
    lookup = PromptLookup(10)
    text = np.array([1, 2, 3] * 9, np.int32)
    lengths = []
    for num_right in (7, 10, 3, 4, 8, 1):
        lengths.append(len(lookup.propose(text, 100)))
        lookup.learn(lengths[-1], num_right)
    assert lengths == [7, 10, 10, 4, 8, 10]


def test_ever_longer_pauses_follow_drafts_that_are_wrong() -> None:
    lookup = PromptLookup(4)
    tried = []
    for length in range(10, 600):
        draft = lookup.propose(np.full(length, 5, np.int32), 4)
        if draft:
            tried.append(length)
            lookup.learn(len(draft), 0)
    assert np.diff(tried).tolist() == [5, 9, 17, 33, 65, 129, 129, 129]


def test_a_right_draft_ends_the_pauses() -> None:
    lookup = PromptLookup(4)
    for length, num_right in ((10, 0), (15, 1)):
        draft = lookup.propose(np.full(length, 5, np.int32), 4)
        lookup.learn(len(draft), num_right)
    assert lookup.propose(np.full(17, 5, np.int32), 4) == [5, 5]


def test_a_token_costs_the_same_in_a_long_text() -> None:
    def seconds_of_last(length: int) -> float:
        lookup = PromptLookup(4)
        text = np.random.default_rng(0).integers(0, 1000, length + 400).astype(np.int32)
        lookup.propose(text[:length], 4)
        times = []
        for end in range(length, length + 400):
            start = time.perf_counter()
            lookup.propose(text[: end + 1], 4)
            times.append(time.perf_counter() - start)
        return float(np.median(times))

    assert seconds_of_last(64_000) < 5 * seconds_of_last(500)
