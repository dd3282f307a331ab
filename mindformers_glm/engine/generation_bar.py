"""What a terminal shows while a batch runs: tokens of the prompts, then tokens of the answers."""

from mindformers_glm.engine.step_times import StepTimes
from mindformers_glm.system.progress import Progress


class GenerationBar:
    """A bar that counts prompt tokens until the first answer begins, and new tokens from then on.

    Args:
        times: of the engine, before the first step of the batch.
        num_requests, num_prompt_tokens: of the whole batch.
        is_text_shown: the text is written to the same terminal, so the bar ends where it begins.
    """

    def __init__(
        self, times: StepTimes, num_requests: int, num_prompt_tokens: int, is_text_shown: bool
    ) -> None:
        self._times = times
        self._num_requests = num_requests
        self._is_text_shown = is_text_shown
        self._num_read, self._num_new = times.num_prompt_tokens, times.num_new_tokens
        self._is_reading = True
        self._bar = Progress("Reading prompts", num_prompt_tokens, "tokens")

    def __enter__(self) -> "GenerationBar":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.close()

    def show(self, num_finished: int) -> None:
        """Bring it up to date after a step."""
        num_read, num_new = self._times.num_prompt_tokens, self._times.num_new_tokens
        if self._is_reading and num_new > self._num_new:
            self._is_reading = False
            self._bar.close()
            if not self._is_text_shown:
                self._bar = Progress(self._label(num_finished), None, "tokens")
        if self._is_reading:
            self._bar.advance(num_read - self._num_read)
        elif not self._is_text_shown:
            self._bar.advance(num_new - self._num_new, self._label(num_finished))
        self._num_read, self._num_new = num_read, num_new

    def _label(self, num_finished: int) -> str:
        return f"Answers {num_finished}/{self._num_requests}"
