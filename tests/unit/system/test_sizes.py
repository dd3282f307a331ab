"""Sizes as people read them."""

import pytest

from mindformers_glm.system.sizes import format_bytes


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (18_790_481_920, "17.5 GB"),
        (2**30, "1.0 GB"),
        (2**29, "512.0 MB"),
        (5_100_000, "4.9 MB"),
        (40 * 2**10, "40.0 KB"),
        (1000, "1000 bytes"),
        (0, "0 bytes"),
    ],
)
def test_a_size_is_written_in_the_unit_that_fits(num_bytes: int, text: str) -> None:
    assert format_bytes(num_bytes) == text
