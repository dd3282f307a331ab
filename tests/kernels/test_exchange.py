"""What ranks of one host make together through shared memory, against NumPy: the same bits."""

import numpy as np
import pytest
from aot_call import KernelRefusedError, call

from tests.kernels import host_ranks
from tests.kernels.host_ranks import Ranks
from tests.kernels.kernel_calls import UNTOUCHED, count, output

# Rows, columns: none, fewer than a cache line, one rank's work and all ranks', more than a slot.
SUMS = [(0, 8), (1, 7), (5, 33), (3, 4099), (40, 4096), (70, 4100)]
# Rows, columns of a rank, columns of all together.
GATHERS = [(1, 5, 9), (3, 40, 80), (2, 270_001, 270_007)]
MAXIMA = [(1, 1), (7, 33), (9, 5000)]
# Rows, columns of all, columns of a group: cut within groups, between them, and a short last one.
GROUPS = [(3, 96, 32), (40, 1000, 128), (2, 250, 128)]


def _part(rank: int, name: str, *shape: int) -> np.ndarray:
    rng = np.random.default_rng([rank, *map(ord, name), *shape])
    return rng.standard_normal(shape).astype(np.float32)


def _with_odd_numbers(x: np.ndarray, rank: int) -> np.ndarray:
    x[0, 0] = [np.nan, 1.0, -3.0][rank % 3]
    x[-1, -1] = [2.0, -np.inf, 5.0][rank % 3]
    return x


def _cut(size: int, columns: int, group: int) -> tuple[list[range], list[range]]:
    """Even parts, and the same up to the borders of groups."""
    ends = [columns * rank // size for rank in range(size + 1)]
    own = [range(*ends[rank : rank + 2]) for rank in range(size)]
    wide = [
        range(cut.start // group * group, min(-(-cut.stop // group) * group, columns))
        for cut in own
    ]
    return own, wide


def run_cases(rank: int, size: int) -> dict[str, np.ndarray]:
    """On one rank; the tests compare with what NumPy makes of all parts."""
    found = {}
    for rows, columns in SUMS:
        x = _part(rank, "sum", rows + 1, columns)
        y = call("glm_sum_ranks", x, count(rows), out=output(rows + 1, columns))
        found[f"sum {rows} {columns}"] = y
    for rows, part, width in GATHERS:
        x = _part(rank, "gather", rows + 1, part)
        y = call("glm_gather_ranks", x, count(rows), out=output(rows + 1, width))
        found[f"gather {rows} {part}"] = y
    for rows, columns in MAXIMA:
        x = _with_odd_numbers(_part(rank, "maxima", rows, columns), rank)
        y = call("glm_row_maxima", x, count(rows), out=output(rows, 1))
        found[f"maxima {rows} {columns}"] = y
    for rows, columns, group in GROUPS:
        own, wide = _cut(size, columns, group)
        mine, widened = own[rank], wide[rank]
        groups = [column // group for cut in own for column in (cut.start, cut.stop - 1)]
        first, last = groups[2 * rank : 2 * rank + 2]
        numbers = np.int32(
            [
                min((first + 1) * group, mine.stop) - mine.start,
                mine.stop - max(last * group, mine.start),
                mine.start - widened.start,
                widened.stop - mine.stop,
                *groups,
            ]
        )
        x = np.ascontiguousarray(_part(0, "groups", rows, columns)[:, mine.start : mine.stop])
        y = call("glm_share_groups", x, numbers, count(rows), out=output(rows, len(widened)))
        found[f"groups {rows} {columns}"] = y
    return found


@pytest.fixture(scope="module", params=[2, 3])
def answers(request: pytest.FixtureRequest) -> list[dict[str, np.ndarray]]:
    return Ranks(request.param, host_ranks.exchange_all).results()


Answers = list[dict[str, np.ndarray]]


@pytest.mark.parametrize(("rows", "columns"), SUMS)
def test_ranks_are_added_up_in_their_order(answers: Answers, rows: int, columns: int) -> None:
    expected = _part(0, "sum", rows + 1, columns)[:rows]
    for rank in range(1, len(answers)):
        expected = expected + _part(rank, "sum", rows + 1, columns)[:rows]
    for found in (answer[f"sum {rows} {columns}"] for answer in answers):
        np.testing.assert_array_equal(found[:rows], expected)
        assert (found[rows:] == UNTOUCHED).all()


@pytest.mark.parametrize(("rows", "part", "width"), GATHERS)
def test_columns_of_ranks_lie_side_by_side(
    answers: Answers, rows: int, part: int, width: int
) -> None:
    parts = [_part(rank, "gather", rows + 1, part)[:rows] for rank in range(len(answers))]
    expected = np.concatenate(parts, axis=1)[:, :width]
    for found in (answer[f"gather {rows} {part}"] for answer in answers):
        np.testing.assert_array_equal(found[:rows, : expected.shape[1]], expected)
        assert (found[rows:] == UNTOUCHED).all()


@pytest.mark.parametrize(("rows", "columns"), MAXIMA)
def test_maxima_are_of_whole_rows_and_what_is_no_number_stays(
    answers: Answers, rows: int, columns: int
) -> None:
    parts = [
        _with_odd_numbers(_part(rank, "maxima", rows, columns), rank)
        for rank in range(len(answers))
    ]
    whole = np.abs(np.concatenate(parts, axis=1))
    expected = np.where(np.isfinite(whole).all(axis=1), whole.max(axis=1), np.nan)
    for found in (answer[f"maxima {rows} {columns}"] for answer in answers):
        np.testing.assert_array_equal(found[:, 0], expected)


@pytest.mark.parametrize(("rows", "columns", "group"), GROUPS)
def test_a_cut_group_has_the_magnitude_of_all_its_columns(
    answers: Answers, rows: int, columns: int, group: int
) -> None:
    whole = _part(0, "groups", rows, columns)
    own, wide = _cut(len(answers), columns, group)
    for rank, answer in enumerate(answers):
        found = answer[f"groups {rows} {columns}"]
        for column in wide[rank]:
            shown = found[:, column - wide[rank].start]
            if column in own[rank]:
                np.testing.assert_array_equal(shown, whole[:, column])
                continue
            begin = column // group * group
            most = np.abs(whole[:, begin : begin + group]).max(axis=1)
            np.testing.assert_array_equal(shown, most)


def test_many_meetings_lose_none() -> None:
    ranks = Ranks(4, host_ranks.meet)
    assert ranks.results() == [[[1999, rank] for rank in range(4)]] * 4


def test_the_memory_has_no_name_that_could_stay_behind() -> None:
    assert Ranks(2, host_ranks.tell_names).results() == [(True, [])] * 2


def test_ranks_of_two_hosts_do_not_share() -> None:
    assert Ranks(2, host_ranks.tell_names, hosts=[0, 1]).results() == [(False, [])] * 2


def test_a_rank_that_is_killed_is_named() -> None:
    ranks = Ranks(3, host_ranks.die)
    assert [ranks.result(rank) for rank in (0, 2)] == ["rank 1 has ended"] * 2
    ranks.end()


def test_a_rank_that_stays_away_is_named() -> None:
    ranks = Ranks(2, host_ranks.stay_away, timeout_s=1)
    assert ranks.result(0) == "rank 1 did not send its part for 1 seconds"
    ranks.end()


def test_who_waits_sleeps() -> None:
    assert Ranks(2, host_ranks.measure_waiting).results()[0] < 0.2


def test_without_others_there_is_nothing_to_exchange(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KernelRefusedError):
        call("glm_sum_ranks", np.zeros((1, 4), np.float32), count(1), out=output(1, 4))
    assert "called before the ranks of this host have met" in capfd.readouterr().err
