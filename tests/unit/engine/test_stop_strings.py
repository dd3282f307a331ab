import random

import pytest

from mindformers_glm.engine.stop_strings import StopStringMatcher


def _stream(stop: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    matcher = StopStringMatcher(stop)
    shown = [matcher.feed(piece) for piece in pieces]
    return [*shown, matcher.flush()], matcher.is_stopped


def test_text_is_cut_before_the_stop_string() -> None:
    assert _stream(["END"], ["abEND cd"]) == (["ab", ""], True)


def test_a_stop_string_across_pieces_is_found_and_never_shown() -> None:
    assert _stream(["END"], ["abE", "N", "D", "x"]) == (["ab", "", "", "", ""], True)


def test_a_false_beginning_is_shown_once_it_is_known() -> None:
    assert _stream(["END"], ["abE", "Nx", "E"]) == (["ab", "ENx", "", "E"], False)


def test_the_first_of_several_counts() -> None:
    assert _stream(["yy", "x"], ["1x2yy"]) == (["1", ""], True)


def test_without_stop_strings_everything_passes() -> None:
    assert _stream([], ["a", "b"]) == (["a", "b", ""], False)


@pytest.mark.parametrize("seed", range(50))
def test_pieces_do_not_matter(seed: int) -> None:
    # With few letters, stop strings and their false beginnings are frequent.
    rng = random.Random(seed)
    text = "".join(rng.choices("abc", k=30))
    stop = ["".join(rng.choices("abc", k=rng.randint(1, 5))) for _ in range(2)]
    pieces = []
    rest = text
    while rest:
        size = rng.randint(1, 4)
        pieces.append(rest[:size])
        rest = rest[size:]
    # Oracle: cut at the stop string that is complete first; a piece of one character each time.
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    shown, is_stopped = _stream(stop, list(text))
    assert is_stopped == bool(ends)
    assert "".join(shown) == (text[: min(ends)[1]] if ends else text)
    in_pieces, is_stopped_in_pieces = _stream(stop, pieces)
    assert is_stopped_in_pieces == bool(ends)
    if not ends:
        assert "".join(in_pieces) == text
    else:
        assert text.startswith("".join(in_pieces))
        assert not any(s in "".join(in_pieces) for s in stop)
