"""Text as it appears on stderr while it is generated."""

import random
from dataclasses import replace

import pytest

from mindformers_glm.serving.live_text import LiveText
from tests.unit.serving.echo import answer_to

DONE = answer_to("")


def piece(text: str, *, is_last: bool = False):
    return replace(DONE, delta_text=text, finish_reason="stop" if is_last else None)


def test_what_is_streamed_is_the_text_of_500_answers(capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices("北京🙂👩‍👩‍👧 \nab\té\u2028", k=rng.randrange(1, 40)))
        shown = LiveText(1)
        start = 0
        while start < len(text):
            end = start + rng.randrange(3)  # a step may give no text
            shown.show(0, piece(text[start:end]))
            start = end
        shown.show(0, piece("", is_last=True))
        assert capsys.readouterr().err == (text if text.endswith("\n") else text + "\n")


def test_answers_that_run_together_come_one_after_the_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shown = LiveText(3)
    shown.show(2, piece("third", is_last=True))
    shown.show(0, piece("fi"))
    shown.show(1, piece("sec"))
    shown.show(0, piece("rst"))
    assert capsys.readouterr().err == "mindformers_glm: prompt 1 of 3\nfirst"
    shown.show(0, piece("", is_last=True))
    shown.show(1, piece("ond\n", is_last=True))
    assert capsys.readouterr().err == (
        "\nmindformers_glm: prompt 2 of 3\nsecond\nmindformers_glm: prompt 3 of 3\nthird\n"
    )


def test_an_answer_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    LiveText(1).show(0, piece("a\x1b[2J\r\x9b\x7f\n\tb", is_last=True))
    assert capsys.readouterr().err == "a\\x1b[2J\\x0d\\x9b\\x7f\n\tb\n"


def test_an_interrupted_line_is_ended(capsys: pytest.CaptureFixture[str]) -> None:
    shown = LiveText(1)
    shown.show(0, piece("half"))
    shown.end_line()
    shown.end_line()
    assert capsys.readouterr().err == "half\n"
