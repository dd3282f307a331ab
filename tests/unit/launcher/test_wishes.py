"""What rank 0 says of signals, and which of them the launcher hands on."""

import os
import signal
from collections.abc import Iterator

import pytest

from mindformers_glm.launcher.wishes import RankWishes


@pytest.fixture
def wishes() -> Iterator[RankWishes]:
    wishes = RankWishes()
    yield wishes
    wishes.begin()


def _say(wishes: RankWishes, text: str) -> None:
    os.write(wishes.sender, text.encode())


def test_nothing_is_handed_on_to_a_rank_that_says_nothing(wishes: RankWishes) -> None:
    assert not wishes.takes(signal.SIGINT)
    assert not wishes.takes(signal.SIGTERM)
    assert not wishes.is_server


def test_a_server_is_asked_twice(wishes: RankWishes) -> None:
    _say(wishes, "ends 150\n")
    assert not wishes.takes(signal.SIGHUP)
    taken = [wishes.takes(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM)]
    assert taken == [True, True, False]
    assert not wishes.is_late
    assert wishes.is_server


def test_a_server_that_takes_longer_than_it_said_is_late(
    wishes: RankWishes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _say(wishes, "ends 0\n")
    assert not wishes.is_late
    monkeypatch.setattr("mindformers_glm.launcher.wishes._MARGIN_S", -1.0)
    wishes.takes(signal.SIGTERM)
    assert wishes.is_late


def test_a_chat_takes_each_interrupt_and_nothing_else(wishes: RankWishes) -> None:
    _say(wishes, "interrupts\n")
    assert [wishes.takes(signal.SIGINT) for _ in range(5)] == [True] * 5
    assert not wishes.takes(signal.SIGTERM)
    assert not wishes.is_server


@pytest.mark.parametrize("said", ["ends\n", "ends soon\n", "\xff\xfe", "x" * 100_000])
def test_what_is_no_wish_is_none(wishes: RankWishes, said: str) -> None:
    os.set_blocking(wishes.sender, False)
    _say(wishes, said)
    assert not wishes.takes(signal.SIGINT)
