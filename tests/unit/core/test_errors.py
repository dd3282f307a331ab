"""Messages stay one short line, whatever they quote."""

import pytest

from mindformers_glm.core.errors import CheckpointError


@pytest.mark.parametrize("quoted", ["a\nb", "a\r\nb", "\x1b[2J", "a\u2028b", "\0", "\x85"])
def test_control_characters_are_spelt(quoted: str) -> None:
    message = str(CheckpointError(f"/model names {quoted} twice: 北京 🦀 keep one."))
    assert message.isprintable()
    assert "北京 🦀" in message


def test_the_middle_of_a_long_message_is_left_out() -> None:
    message = str(CheckpointError(f"/model names {'x' * 9_000_000} twice: keep one."))
    assert len(message) < 2000
    assert message.startswith("/model names xxx")
    assert message.endswith("xxx twice: keep one.")
