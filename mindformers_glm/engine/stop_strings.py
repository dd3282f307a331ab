"""Texts that end an answer, found while the answer is still being written."""

from collections.abc import Sequence


class StopStringMatcher:
    """Passes text on and stops before the first stop string.

    Text that may be the beginning of a stop string is held back until it is known not to be, so
    nothing ever has to be taken back from a stream. Feed it the answer piece by piece, then
    `flush`.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.found: str | None = None  # the stop string that ended the answer

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was found."""
        return self.found is not None

    def feed(self, text: str) -> str:
        """Take the next piece and return what can be shown; nothing after a stop string."""
        if self.is_stopped:
            return ""
        text = self._held + text
        found = [(start, stop) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:
            start, self.found = min(found)
            self._held = ""
            return text[:start]
        num_held = self._num_possible_stop_chars(text)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def flush(self) -> str:
        """Return what is held back: the answer ended without completing a stop string."""
        held, self._held = self._held, ""
        return held

    def _num_possible_stop_chars(self, text: str) -> int:
        """Length of the longest end of `text` that is the beginning of a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0
