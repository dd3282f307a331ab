"""The generation loop: add_request -> schedule -> run -> sample -> output."""

from collections.abc import Collection
from collections.abc import Sequence as Items
from typing import Protocol

import numpy as np

from mindformers_glm.backends.runner import ModelRunner
from mindformers_glm.core.errors import MemoryBudgetError, PromptError
from mindformers_glm.engine.answer import Answer, ListView
from mindformers_glm.engine.batch import build_batch
from mindformers_glm.engine.block_pool import BlockPool
from mindformers_glm.engine.engine_config import EngineConfig
from mindformers_glm.engine.generation_defaults import GenerationDefaults
from mindformers_glm.engine.request_output import FinishReason, RequestOutput
from mindformers_glm.engine.sampler import NonFiniteLogitsError, keep_freed_memory, sample_token
from mindformers_glm.engine.sampling_params import SamplingParams, SamplingSettings
from mindformers_glm.engine.scheduler import Chunk, Schedule, Scheduler
from mindformers_glm.engine.sequence import Sequence
from mindformers_glm.engine.step_times import StepTimes
from mindformers_glm.engine.stop_strings import StopStringMatcher
from mindformers_glm.system.interrupts import delay_interrupts
from mindformers_glm.tokenizer.vocabulary import Detokenizer


class Detokenizing(Protocol):
    """What the engine needs of a tokenizer."""

    def new_detokenizer(self) -> Detokenizer:
        """Return a detokenizer for one answer."""
        ...


class LLMEngine:
    """Runs any number of requests together on one model runner.

    Not thread-safe: one thread adds, steps and aborts. A request that fails ends alone.

    Args:
        runner: its KV cache is allocated with `config.num_blocks` blocks.
        eos_token_ids: tokens that end an answer, unless a request ignores them.
        defaults: what requests get that leave a setting open.
        special_token_ids: tokens without text; where they stand in an answer is kept.
    """

    def __init__(
        self,
        runner: ModelRunner,
        config: EngineConfig,
        tokenizer: Detokenizing,
        eos_token_ids: Items[int],
        defaults: GenerationDefaults | None = None,
        special_token_ids: Collection[int] = (),
    ) -> None:
        self.config = config
        self.runner = runner
        self.pool = BlockPool(config.num_blocks)
        self.scheduler = Scheduler(config, self.pool)
        self.defaults = defaults or GenerationDefaults()
        self.tokenizer = tokenizer
        self._eos_token_ids = frozenset(eos_token_ids)
        self._special_token_ids = frozenset(special_token_ids)
        self._requests: dict[str, _RunningRequest] = {}
        self.measured: list[Sequence] = []  # texts whose logits somebody reads (row_logits.py)
        self._num_requests_seen = 0
        # Of the step under way, or one that was interrupted.
        self._outputs: list[RequestOutput] = []
        self.num_drafted = 0  # tokens guessed by prompt lookup
        self.num_accepted = 0  # those of them that were right
        self.times = StepTimes()
        keep_freed_memory()

    def has_unfinished(self) -> bool:
        """Whether a `step` would do anything."""
        return bool(self._requests)

    @property
    def num_tokens_under_way(self) -> dict[str, int]:
        """Tokens of prompt and answer of each unfinished request, by its id.

        Also the tokens that are done of each text in `measured`.
        """
        return {name: request.sequence.num_tokens for name, request in self._requests.items()} | {
            f"logits {index}": text.num_computed for index, text in enumerate(self.measured)
        }

    def add_request(
        self, request_id: str, prompt_token_ids: Items[int], params: SamplingParams | None = None
    ) -> None:
        """Queue a request.

        Raises:
            PromptError: this prompt cannot be run; the engine and all other requests are as before.
            ValueError: the id belongs to an unfinished request.
        """
        if request_id in self._requests:
            raise ValueError(f"request {request_id!r} is already running")
        settings = self.defaults.resolve(params or SamplingParams())
        index = self._num_requests_seen
        self._num_requests_seen += 1  # also for a bad prompt: it must not shift others' draws
        check_prompt(prompt_token_ids, self.config.max_model_len, self.runner.vocab_size)
        seed = settings.seed if settings.seed is not None else [self.config.seed, index]
        stop_token_ids = set(settings.stop_token_ids)
        if not settings.ignore_eos:
            stop_token_ids |= self._eos_token_ids
        sequence = Sequence(
            request_id,
            prompt_token_ids,
            settings,
            max_tokens=self._limit_tokens(len(prompt_token_ids), settings),
            stop_token_ids=frozenset(i for i in stop_token_ids if i < self.runner.vocab_size),
            rng=np.random.default_rng(seed),
            max_draft_len=self.config.prompt_lookup_num_tokens,
        )
        self._requests[request_id] = _RunningRequest(sequence, self.tokenizer.new_detokenizer())
        self.scheduler.add(sequence)

    def step(self) -> list[RequestOutput]:
        """Run one batch and return an output for each request that got tokens or ended.

        Raises:
            MemoryBudgetError: no request can run while logits are read that hold too many blocks.
        """
        self.times.begin_step()
        schedule = self.scheduler.schedule()
        self._outputs += [self._fail_for_blocks(sequence) for sequence in schedule.unschedulable]
        if schedule.chunks:
            logits = self.runner.execute(build_batch(schedule.chunks, self.config.block_size))
            # Ctrl-C in the middle would lose tokens of requests that others wait for.
            with delay_interrupts():
                self._take_step(schedule, logits)
        elif self._requests and not self._outputs:
            raise MemoryBudgetError(
                f"The logits being read hold {self._num_measured_blocks} of the "
                f"{self.pool.num_blocks} KV-cache blocks and no request can run: read them to "
                "their end or close them first."
            )
        if not self._requests:
            self.times.pause()
        outputs, self._outputs = self._outputs, []
        return outputs

    def _take_step(self, schedule: Schedule, logits: np.ndarray) -> None:
        self.scheduler.complete(schedule)
        row = 0
        for chunk in schedule.chunks:
            if chunk.is_sampled:
                self._outputs.append(self._advance(chunk, logits[row : row + chunk.num_samples]))
                row += chunk.num_samples
        self.times.end_step(schedule.chunks)

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request now and return what it has; None if there is no such request."""
        request = self._requests.get(request_id)
        if request is None:
            return None
        output = self._finish(request, "abort")
        if not self._requests:
            self.times.pause()
        return output

    def _advance(self, chunk: Chunk, logits: np.ndarray) -> RequestOutput:
        """Sample one token, and another for each token of the draft that proves right.

        A row's logits are those of normal decoding as long as all drafted tokens before it are the
        sampled ones; at the first that is not, the rest is dropped.
        """
        request = self._requests[chunk.sequence.request_id]
        output = self._take_token(request, logits[0])
        num_accepted = 0
        for guess, row in zip(chunk.draft, logits[1:], strict=True):
            if output is not None or chunk.sequence.token_ids[-1] != guess:
                break
            num_accepted += 1
            output = self._take_token(request, row)
        self.num_drafted += len(chunk.draft)
        self.num_accepted += num_accepted
        if output is not None:
            return output
        if chunk.draft:
            chunk.sequence.lookup.learn(len(chunk.draft), num_accepted)
            self.scheduler.settle_draft(chunk, num_accepted)
        return request.take_output()

    def _take_token(self, request: "_RunningRequest", logits: np.ndarray) -> RequestOutput | None:
        """Sample, and return the last output if that was the request's last token."""
        sequence = request.sequence
        try:
            token_id = sample_token(logits, sequence)
        except NonFiniteLogitsError:
            return self._finish(
                request,
                "error",
                f"The network's output for token {sequence.num_tokens} of this request is not a "
                "number: use params_dtype bfloat16 or float32 if it is float16, else check the "
                "checkpoint's files.",
            )
        sequence.append(token_id)
        if token_id in sequence.stop_token_ids:
            return self._finish(request, "stop")
        if token_id in self._special_token_ids:
            request.start_turn()
        request.add_text(token_id)
        if request.matcher.is_stopped:
            return self._finish(request, "stop")
        if sequence.num_tokens >= sequence.max_tokens:
            return self._finish(request, "length")
        return None

    def _finish(
        self, request: "_RunningRequest", reason: FinishReason, error: str | None = None
    ) -> RequestOutput:
        del self._requests[request.sequence.request_id]
        self.scheduler.remove(request.sequence)
        request.flush_text()
        # The end of the text may complete a stop string only here: broken bytes become visible.
        if request.matcher.is_stopped and reason == "length":
            reason = "stop"
        return request.take_output(reason, error)

    def _fail_for_blocks(self, sequence: Sequence) -> RequestOutput:
        """End a request that the scheduler removed because the KV cache is too small for it."""
        request = self._requests.pop(sequence.request_id)
        room = (self.pool.num_blocks - self._num_measured_blocks) * self.config.block_size
        request.flush_text()
        place = "what unfinished logits_chunks leave of the" if self.measured else "the whole"
        return request.take_output(
            "error",
            f"The request has {sequence.num_tokens} tokens, {place} KV cache has room for {room}: "
            "raise max_device_memory, or lower max_model_len to refuse it earlier.",
        )

    @property
    def _num_measured_blocks(self) -> int:
        return sum(len(text.block_table) for text in self.measured)

    def _limit_tokens(self, num_prompt_tokens: int, settings: SamplingSettings) -> int:
        """Return the number of prompt and generated tokens at which generation ends."""
        limit = self.config.max_model_len
        if settings.max_new_tokens is not None:
            return min(limit, num_prompt_tokens + settings.max_new_tokens)
        if settings.max_length is not None:
            if settings.max_length <= num_prompt_tokens:
                raise PromptError(
                    f"The prompt has {num_prompt_tokens} tokens and max_length="
                    f"{settings.max_length} counts prompt and answer together: raise max_length "
                    "or set max_new_tokens."
                )
            return min(limit, settings.max_length)
        return limit


class _RunningRequest:
    """A sequence with the text made of it."""

    def __init__(self, sequence: Sequence, detokenizer: Detokenizer) -> None:
        self.sequence = sequence
        self.matcher = StopStringMatcher(sequence.settings.stop)
        self._prompt_token_ids = sequence.token_ids.tolist()
        self._detokenizer = detokenizer
        self._new_text = ""  # not in an output yet
        self._num_fed = 0  # characters given to the matcher, which may hold some of them
        # What outputs had; they share these lists, which only grow.
        self._token_ids: list[int] = []
        self._pieces: list[str] = []
        self._turn_starts: list[int] = []

    def add_text(self, token_id: int) -> None:
        text = self._detokenizer.feed(token_id)
        self._num_fed += len(text)
        self._new_text += self.matcher.feed(text)

    def start_turn(self) -> None:
        self._turn_starts.append(self._num_fed)

    def flush_text(self) -> None:
        self._new_text += self.matcher.feed(self._detokenizer.flush())
        self._new_text += self.matcher.flush()

    def take_output(
        self, reason: FinishReason | None = None, error: str | None = None
    ) -> RequestOutput:
        sequence = self.sequence
        token_ids = sequence.generated_token_ids[len(self._token_ids) :].tolist()
        text, self._new_text = self._new_text, ""
        self._token_ids += token_ids
        self._pieces.append(text)
        return RequestOutput(
            request_id=sequence.request_id,
            prompt_token_ids=self._prompt_token_ids,
            answer=Answer(
                ListView(self._token_ids), ListView(self._pieces), ListView(self._turn_starts)
            ),
            delta_token_ids=token_ids,
            delta_text=text,
            finish_reason=reason,
            error=error,
            num_cached_tokens=sequence.num_cached_tokens or 0,
        )


def check_prompt(token_ids: Items[int], max_model_len: int, vocab_size: int) -> None:
    """Refuse a prompt that the network cannot continue.

    Raises:
        PromptError: it is empty, leaves no room for an answer, or names tokens that do not exist.
    """
    check_token_ids(token_ids, vocab_size)
    if len(token_ids) >= max_model_len:
        raise PromptError(
            f"The prompt has {len(token_ids)} tokens and the limit is max_model_len="
            f"{max_model_len} for prompt and answer together: shorten it or raise --max_model_len."
        )


def check_token_ids(token_ids: Items[int], vocab_size: int) -> None:
    """Refuse what the network cannot embed.

    Raises:
        PromptError: it is no list, there is no token, or one is not in the vocabulary.
    """
    if isinstance(token_ids, str | bytes) or not isinstance(token_ids, Items | np.ndarray):
        raise PromptError(
            f"Token ids must be a list of whole numbers, got a {type(token_ids).__name__}."
        )
    if len(token_ids) == 0:
        raise PromptError("The prompt is empty: give at least one token.")
    for token_id in token_ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int | np.integer):
            raise PromptError(f"A prompt of token ids must hold whole numbers, got {token_id!r}.")
        if not 0 <= token_id < vocab_size:
            raise PromptError(
                f"Token id {token_id} of the prompt is outside the vocabulary 0..{vocab_size - 1}."
            )
