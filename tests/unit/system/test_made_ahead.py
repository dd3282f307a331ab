"""Results made ahead come in order, and errors where their results would."""

import threading
from collections.abc import Iterator

import pytest

from mindformers_glm.system.made_ahead import made_ahead


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_results_come_in_order(count: int) -> None:
    assert list(made_ahead(lambda item: item * item, range(count))) == [n * n for n in range(count)]


def test_an_error_comes_in_its_place() -> None:
    results = made_ahead(lambda item: 1 // (3 - item), range(9))
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_who_stops_early_leaves_no_thread() -> None:
    before = threading.active_count()
    made: list[int] = []

    def items() -> Iterator[int]:
        yield from range(1000)

    results = made_ahead(lambda item: made.append(item), items())
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(made) < 20
    assert threading.active_count() == before
