"""Connections from rank 0 to the other ranks."""

import socket
import threading
import time
from queue import SimpleQueue
from typing import Any

import pytest

from mindformers_glm.core.errors import RankError
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.engine import rank_channel
from mindformers_glm.engine.rank_channel import Follower, Leader
from tests.unit.engine.run_ranks import run_ranks

_PEER = "127.0.0.1"


def _meet(size: int, losses: "SimpleQueue[RankError]") -> list[Any]:
    def work(group: ProcessGroup) -> Leader | Follower:
        if group.rank == 0:
            leader = Leader(group, _PEER)
            leader.watch(losses.put)
            return leader
        return Follower(group, losses.put)

    return run_ranks(size, work)


@pytest.fixture
def losses() -> "SimpleQueue[RankError]":
    return SimpleQueue()


def test_every_rank_hears_the_same_in_its_order(losses: "SimpleQueue[RankError]") -> None:
    leader, *followers = _meet(3, losses)
    messages = [{"n": n, "text": "北京\ud800" * n, "large": [2**70] * n} for n in range(5)]
    messages.append({"ids": list(range(100_000))})
    for message in messages:
        leader.send(message)
    leader.end()
    for follower in followers:
        assert [follower.receive() for _ in messages] == messages
        assert follower.receive() is None
    assert losses.empty()


def test_rank_0_is_told_of_a_rank_that_ends(losses: "SimpleQueue[RankError]") -> None:
    leader, first, second = _meet(3, losses)
    second._connection.shutdown(socket.SHUT_RDWR)
    told = sorted(str(losses.get(timeout=10)) for _ in range(2))
    assert "Rank 0" in told[0]  # by the follower's own thread, which sees the end too
    assert "Rank 2 of this job has ended" in told[1]
    leader.send({"a": 1})
    assert first.receive() == {"a": 1}


def test_a_rank_is_told_that_rank_0_ends(losses: "SimpleQueue[RankError]") -> None:
    leader, _ = _meet(2, losses)
    leader._is_over = True
    leader._connections[1].shutdown(socket.SHUT_RDWR)
    assert "Rank 0 of this job has ended" in str(losses.get(timeout=10))


def test_to_send_to_a_rank_that_is_gone_is_told(losses: "SimpleQueue[RankError]") -> None:
    leader, _ = _meet(2, losses)
    leader._connections[1].shutdown(socket.SHUT_RDWR)
    with pytest.raises(RankError, match="Rank 1 of this job has ended"):
        leader.send({})


def test_strangers_are_sent_away(
    monkeypatch: pytest.MonkeyPatch, losses: "SimpleQueue[RankError]"
) -> None:
    monkeypatch.setattr(rank_channel, "_GREETING_S", 0.2)
    greet = socket.create_connection
    silent: list[socket.socket] = []

    def connect(address: Any, timeout: float) -> socket.socket:
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n", b"x" * 15 + bytes(5)):
            silent.append(greet(address, timeout=timeout))
            silent[-1].sendall(said)
        return greet(address, timeout=timeout)

    monkeypatch.setattr(socket, "create_connection", connect)
    leader, follower = _meet(2, losses)
    leader.send({"a": 1})
    assert follower.receive() == {"a": 1}
    assert [stranger.recv(1) for stranger in silent if not stranger.settimeout(5)] == [b""] * 3


def test_a_rank_that_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_channel, "_MEET_S", 0.2)

    def work(group: ProcessGroup) -> str:
        if group.rank == 1:
            return str(group.gather([0, 0, 0, 0]))
        with pytest.raises(RankError, match=r"Rank 1 did not connect to rank 0 within 0\.2 s"):
            Leader(group, _PEER)
        return ""

    run_ranks(2, work)


def test_waiting_takes_no_processor_time(losses: "SimpleQueue[RankError]") -> None:
    leader, follower = _meet(2, losses)
    waiting = threading.Thread(target=follower.receive)
    waiting.start()
    before_s = time.process_time()
    waiting.join(0.5)
    assert time.process_time() - before_s < 0.2
    leader.end()
    waiting.join(10)
    assert not waiting.is_alive()
