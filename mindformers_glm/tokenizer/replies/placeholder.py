"""What ChatGLM2 and ChatGLM3 write in the place of a date, as text."""

# Source: `process_response` of their modeling_chatglm.py.
_PLACEHOLDER = "[[训练时间]]"
_TEXT = "2023年"


class PlaceholderFiller:
    """Replaces the placeholder while text is being written, holding back what may begin one."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """Take the next piece and return what is certain."""
        text = (self._held + text).replace(_PLACEHOLDER, _TEXT)
        num_held = next(
            length
            for length in range(min(len(_PLACEHOLDER) - 1, len(text)), -1, -1)
            if text.endswith(_PLACEHOLDER[:length])
        )
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """Return what is held back: no more text comes."""
        held, self._held = self._held, ""
        return held
