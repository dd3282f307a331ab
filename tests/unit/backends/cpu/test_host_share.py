"""backends/cpu/host_share.py: what ranks on one machine take of it, without starting any."""

import threading

import pytest

from mindformers_glm.backends.cpu import host_share
from mindformers_glm.backends.cpu.host_share import HostShare, count_threads, share_host
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel
from tests.unit.engine.run_ranks import run_ranks

GIB = 2**30


@pytest.mark.parametrize(
    ("own", "masks", "threads"),
    [
        ({0, 1, 2, 3}, [{0, 1, 2, 3}] * 2, 2),  # shared
        ({0, 1}, [{0, 1}, {2, 3}], 2),  # bound by the launcher
        ({0, 1}, [{0, 1}] * 4, 1),  # more ranks than cores
        ({0, 1, 2, 3, 4, 5}, [{0, 1, 2, 3, 4, 5}, {4, 5}], 5),
        ({0, 1, 2}, [{0, 1, 2}] * 3, 1),  # three thirds are one, rounded or not
    ],
)
def test_cores_are_divided_among_the_ranks_that_may_use_them(
    own: set[int], masks: list[set[int]], threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_share, "physical_cores", lambda mask: {str(core) for core in mask})
    assert count_threads(own, masks) == threads


def test_a_single_rank_leaves_its_threads_open() -> None:
    share = share_host(ProcessGroup(TensorParallel()))
    assert (share.local_ranks, share.num_threads) == ((0,), None)


def test_ranks_of_other_machines_share_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_share, "physical_cores", lambda mask: {str(core) for core in mask})
    monkeypatch.setattr(host_share, "usable_processors", lambda: {1, 31, 32, 700})
    names: dict[int, str] = {}
    monkeypatch.setattr(host_share.socket, "gethostname", lambda: names[threading.get_ident()])

    def work(group: ProcessGroup) -> HostShare:
        names[threading.get_ident()] = "one" if group.rank < 2 else "other"
        return share_host(group)

    shares = run_ranks(3, work)
    assert [share.local_ranks for share in shares] == [(0, 1), (0, 1), (2,)]
    assert [share.num_threads for share in shares] == [2, 2, 4]


def test_memory_is_divided_and_the_least_of_what_ranks_see_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[int, int | None] = {}
    monkeypatch.setattr(host_share, "read_available_memory", lambda: seen[threading.get_ident()])

    def work(group: ProcessGroup) -> int | None:
        seen[threading.get_ident()] = (9 + group.rank) * GIB
        return HostShare(group, (0, 1), 1).available_memory(own_bytes=group.rank)

    assert run_ranks(2, work) == [9 * GIB // 2, 9 * GIB // 2 + 1]


def test_memory_is_unknown_where_the_system_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_share, "read_available_memory", lambda: None)
    assert share_host(ProcessGroup(TensorParallel())).available_memory(5) is None


def test_all_ranks_take_the_smallest_number() -> None:
    assert run_ranks(3, lambda group: group.least(7 - group.rank)) == [5, 5, 5]
