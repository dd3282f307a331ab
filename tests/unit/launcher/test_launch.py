"""What the launcher says before anything starts."""

import pytest

from mindformers_glm.launcher.launch import name_ranks


@pytest.mark.parametrize(
    ("ranks", "text"),
    [
        (range(1), "rank 0"),
        (range(1, 2), "rank 1"),
        (range(2), "ranks 0 and 1"),
        (range(8), "ranks 0 to 7"),
        (range(4, 8), "ranks 4 to 7"),
    ],
)
def test_ranks_are_named_as_one_two_or_a_range(ranks: range, text: str) -> None:
    assert name_ranks(ranks) == text
