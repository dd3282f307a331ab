"""Where the time of an engine's steps goes: reading prompts, answering."""

import time
from collections.abc import Callable
from collections.abc import Sequence as Items

from mindformers_glm.engine.scheduler import Chunk


class StepTimes:
    """Counts of one engine since it was made.

    While requests are under way, the time between two steps belongs to the second: that is what
    the caller waits for. A step that reads prompts and answers others is shared by its rows.

    num_steps: batches that were run.
    num_prompt_tokens: rows of prompts that were computed: none for what the prefix cache had, twice
        for a sequence that lost its blocks.
    num_first_tokens, num_next_tokens: generated tokens: those that a prompt's last row gave, and
        all after them.
    prompt_s, answer_s: time of the rows of prompts and of answers.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.num_steps = 0
        self.num_prompt_tokens = self.num_first_tokens = self.num_next_tokens = 0
        self.prompt_s = self.answer_s = 0.0
        self._clock = clock
        self._since_s: float | None = None  # None: no request is under way

    @property
    def num_new_tokens(self) -> int:
        """All generated tokens."""
        return self.num_first_tokens + self.num_next_tokens

    def begin_step(self) -> None:
        """Call before the step's batch is chosen."""
        if self._since_s is None:
            self._since_s = self._clock()

    def end_step(self, chunks: Items[Chunk]) -> None:
        """Call when the step's tokens are with their sequences."""
        assert self._since_s is not None
        now_s = self._clock()
        step_s, self._since_s = now_s - self._since_s, now_s
        prompt_rows = answer_rows = 0
        for chunk in chunks:
            # The scheduler takes all that is pending into a chunk that is sampled.
            num_new = chunk.sequence.num_tokens - chunk.end if chunk.is_sampled else 0
            if chunk.start < chunk.sequence.num_prompt_tokens:
                prompt_rows += chunk.num_rows
                self.num_first_tokens += num_new
            else:
                answer_rows += chunk.num_rows
                self.num_next_tokens += num_new
        self.num_steps += 1
        self.num_prompt_tokens += prompt_rows
        prompt_share = prompt_rows / max(prompt_rows + answer_rows, 1)
        self.prompt_s += step_s * prompt_share
        self.answer_s += step_s * (1 - prompt_share)

    def pause(self) -> None:
        """Call when no request is under way: the time until the next one is nobody's."""
        self._since_s = None
