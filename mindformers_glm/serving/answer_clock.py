"""Tokens of an answer, and when they came."""

import time

from mindformers_glm.serving.chat.model import Piece


class AnswerClock:
    """Counts from the moment it is made, which is when the answer was asked for."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._first: float | None = None
        self._num_first = 0
        self.num_tokens = 0

    def take(self, piece: Piece) -> None:
        """Take the next piece."""
        now = time.perf_counter()
        self.num_tokens += piece.num_tokens
        if self._first is None and (piece.num_tokens or piece.reply):
            self._first, self._num_first = now, max(piece.num_tokens, 1)
        self._last = now

    @property
    def tokens_per_s(self) -> float | None:
        """From the first token on; None where a server counts no tokens, or there is only one."""
        if self._first is None:
            return None
        seconds, later = self._last - self._first, self.num_tokens - self._num_first
        return later / seconds if later > 0 and seconds > 0 else None

    @property
    def first_token_s(self) -> float | None:
        """When the first token came; None: it has not."""
        return None if self._first is None else self._first - self._start

    def tell(self, *, is_stopped: bool) -> str:
        """Say all of it in a line."""
        parts = ["stopped"] if is_stopped else []
        if self.num_tokens:
            parts.append(f"{self.num_tokens} tokens")
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:.3g} tokens/s")
        if self.first_token_s is not None:
            parts.append(f"first token after {self.first_token_s:.3g} s")
        return ", ".join(parts) or "no answer"
