"""A request under way: its answers as they grow, and the outputs made of them."""

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import numpy as np

from mindformers_glm.engine.answer import Answer, ListView, SpecialMark
from mindformers_glm.engine.logprobs import TokenLogprobs, list_logprobs
from mindformers_glm.engine.request_output import FinishReason, RequestOutput
from mindformers_glm.engine.sequence import Sequence
from mindformers_glm.engine.stop_strings import StopStringMatcher
from mindformers_glm.engine.thinking_limit import ThinkingLimit
from mindformers_glm.tokenizer.vocabulary import Detokenizer


@dataclass(frozen=True)
class Ending:
    """Why an answer has ended.

    error: one sentence, where `reason` is "error".
    stop_reason: the token or the text that ended it, if the request named it.
    """

    reason: FinishReason
    error: str | None = None
    stop_reason: int | str | None = None


class RunningSample:
    """One answer: a sequence with the text and the log-probabilities made of it.

    Args:
        prompt_token_ids: the sequence's; a list that all samples share.
        decode_token: text of a token by itself.
        thinking: ends thoughts that are too long; None: they may take as long as they do.
    """

    def __init__(
        self,
        sequence: Sequence,
        prompt_token_ids: list[int],
        detokenizer: Detokenizer,
        decode_token: Callable[[int], str],
        thinking: ThinkingLimit | None = None,
    ) -> None:
        self.sequence = sequence
        self.matcher = StopStringMatcher(sequence.settings.stop)
        self.is_done = False
        self._decode_token = decode_token
        self._thinking = thinking
        self._prompt_token_ids = prompt_token_ids
        self._detokenizer = detokenizer
        self._new_text = ""  # not in an output yet
        self._num_fed = 0  # characters given to the matcher, which may hold some of them
        # What outputs had; they share these lists, which only grow.
        self._token_ids: list[int] = []
        self._pieces: list[str] = []
        self._marks: list[SpecialMark] = []
        self._logprobs: list[TokenLogprobs] = []
        self._prompt_logprobs: list[TokenLogprobs | None] = [None]

    def read_prompt_rows(self, logits: np.ndarray) -> None:
        """Take note of what rows of the prompt said about the token behind them."""
        count = self.sequence.settings.prompt_logprobs
        assert count is not None, "only rows that were asked for are read"
        for row in logits:
            self.sequence.num_prompt_rows_read += 1
            token_id = self._prompt_token_ids[self.sequence.num_prompt_rows_read]
            self._prompt_logprobs.append(list_logprobs(row, token_id, count, self._decode_token))

    @property
    def next_token_id(self) -> int | None:
        """The token that must come next, whatever the logits say; None: choose one."""
        return None if self._thinking is None else self._thinking.next_token_id

    def append(self, token_id: int, logits: np.ndarray) -> None:
        """Add a generated token that was chosen by these logits."""
        self.sequence.append(token_id)
        count = self.sequence.settings.logprobs
        if count is not None:
            self._logprobs.append(list_logprobs(logits, token_id, count, self._decode_token))

    def add_text(self, token_id: int, special_name: str | None) -> None:
        """Add what the token, which is special if it has a name, brings of text."""
        text = self._detokenizer.feed(token_id)
        self._num_fed += len(text)
        length = 0
        if special_name is not None:
            is_shown = not self.sequence.settings.skip_special_tokens
            length = len(special_name) if is_shown else 0
            self._marks.append(SpecialMark(self._num_fed - length, special_name, length))
        if self._thinking is not None:
            shown = text[: len(text) - length]
            is_cut = self._detokenizer.holds_bytes
            self._thinking.take(token_id, shown, special_name, is_cut=is_cut)
            if self._thinking.is_over:
                self._thinking = None
        self._new_text += self.matcher.feed(text)

    def flush_text(self) -> None:
        self._new_text += self.matcher.feed(self._detokenizer.flush())
        self._new_text += self.matcher.flush()

    def take_output(self, ending: Ending | None = None) -> RequestOutput:
        sequence = self.sequence
        token_ids = sequence.generated_token_ids[len(self._token_ids) :].tolist()
        text, self._new_text = self._new_text, ""
        self._token_ids += token_ids
        self._pieces.append(text)
        if ending is not None:
            self.is_done = True
            sequence.stop_guessing()
        settings = sequence.settings
        has_prompt_logprobs = settings.prompt_logprobs is not None and sequence.sample_index == 0
        return RequestOutput(
            request_id=sequence.request_id,
            prompt_token_ids=self._prompt_token_ids,
            answer=Answer(
                ListView(self._token_ids),
                ListView(self._pieces),
                ListView(self._marks),
                token_logprobs=None if settings.logprobs is None else ListView(self._logprobs),
            ),
            delta_token_ids=token_ids,
            delta_text=text,
            finish_reason=None if ending is None else ending.reason,
            error=None if ending is None else ending.error,
            num_cached_tokens=sequence.num_cached_tokens or 0,
            stop_reason=None if ending is None else ending.stop_reason,
            prompt_logprobs=self._prompt_logprobs if has_prompt_logprobs else None,
        )


class RunningRequest:
    """The samples of one request (SamplingParams.n)."""

    def __init__(self, samples: Items[RunningSample]) -> None:
        self.samples = samples
        self._latest = [sample.take_output() for sample in samples] if len(samples) > 1 else []
        self._last_grown = 0

    @property
    def is_done(self) -> bool:
        """Whether all answers are complete."""
        return all(sample.is_done for sample in self.samples)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answers of all samples."""
        return sum(sample.sequence.num_tokens for sample in self.samples)

    def make_output(self, sample: RunningSample, output: RequestOutput) -> RequestOutput:
        """Return the request's output now that one of its samples has a new one."""
        if not self._latest:
            return output
        # All but the one before this have no deltas any more.
        self._latest[self._last_grown] = _without_deltas(self._latest[self._last_grown])
        self._last_grown = sample.sequence.sample_index
        self._latest[self._last_grown] = output
        first = self._latest[0]
        ended = first
        if self.is_done:
            ended = next((latest for latest in self._latest if latest.error), first)
        return replace(
            first,
            finish_reason=ended.finish_reason if self.is_done else None,
            error=ended.error if self.is_done else None,
            samples=tuple(self._latest),
        )


def _without_deltas(output: RequestOutput) -> RequestOutput:
    return replace(output, delta_token_ids=[], delta_text="", delta_reply=None)
