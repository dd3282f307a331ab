"""The generation loop: add_request -> schedule -> run -> sample -> output."""

from collections.abc import Mapping
from collections.abc import Sequence as Items
from typing import Protocol

import numpy as np

from mindformers_glm.backends.runner import ModelRunner
from mindformers_glm.core.errors import MemoryBudgetError, PromptError, describe_defect
from mindformers_glm.engine.answer_grammar import write_answer_grammar
from mindformers_glm.engine.batch import build_batch
from mindformers_glm.engine.block_pool import BlockPool
from mindformers_glm.engine.constraints import (
    AnswerGrammar,
    Constraint,
    ConstraintCompiler,
    RowMask,
)
from mindformers_glm.engine.engine_config import EngineConfig
from mindformers_glm.engine.generation_defaults import GenerationDefaults
from mindformers_glm.engine.llm_arguments import is_list
from mindformers_glm.engine.request_output import FinishReason, RequestOutput
from mindformers_glm.engine.running_request import RunningRequest, RunningSample
from mindformers_glm.engine.sampler import (
    NonFiniteLogitsError,
    NoTokenLeftError,
    check_finite,
    keep_freed_memory,
    sample_token,
)
from mindformers_glm.engine.sampling_params import SamplingParams, SamplingSettings, check_settings
from mindformers_glm.engine.scheduler import Chunk, Schedule, Scheduler
from mindformers_glm.engine.sequence import Sequence
from mindformers_glm.engine.step_times import StepTimes
from mindformers_glm.engine.thinking_limit import ThinkingLimit, ThinkingMarks
from mindformers_glm.engine.token_masks import TokenMasks
from mindformers_glm.system.interrupts import delay_interrupts
from mindformers_glm.tokenizer.vocabulary import Detokenizer


class Detokenizing(Protocol):
    """What the engine needs of a tokenizer."""

    def new_detokenizer(self, *, skip_special_tokens: bool) -> Detokenizer:
        """Return a detokenizer for one answer."""
        ...

    def decode_token(self, token_id: int) -> str:
        """Return the text of a token by itself."""
        ...

    def spell_word(self, word: str) -> list[list[int]]:
        """Return the tokens of a word as it is and behind a blank."""
        ...


class LLMEngine:
    """Runs any number of requests together on one model runner.

    Not thread-safe: one thread adds, steps and aborts. A request that fails ends alone.

    Args:
        runner: its KV cache is allocated with `config.num_blocks` blocks.
        eos_token_ids: tokens that end an answer, unless a request ignores them.
        defaults: what requests get that leave a setting open.
        special_token_names: of the tokens without text; where they stand in an answer is kept.
        max_position_embeddings: up to where `max_model_len` could be raised; None: not at all.
        constraints: compiles the forms that answers must have; None: they can have none.
    """

    def __init__(
        self,
        runner: ModelRunner,
        config: EngineConfig,
        tokenizer: Detokenizing,
        eos_token_ids: Items[int],
        defaults: GenerationDefaults | None = None,
        special_token_names: Mapping[int, str] | None = None,
        max_position_embeddings: int | None = None,
        constraints: ConstraintCompiler | None = None,
    ) -> None:
        self.config = config
        self.runner = runner
        self.pool = BlockPool(config.num_blocks)
        self.scheduler = Scheduler(config, self.pool)
        self.defaults = defaults or GenerationDefaults()
        self.tokenizer = tokenizer
        self._eos_token_ids = frozenset(eos_token_ids)
        self._special_token_names = special_token_names or {}
        self._constraints = constraints
        self._masks = TokenMasks()
        self._requests: dict[str, RunningRequest] = {}
        self.measured: list[Sequence] = []  # texts whose logits somebody reads (row_logits.py)
        self._num_requests_seen = 0
        # What to do with a text that is too long.
        self.length_advice = "shorten it"
        if (max_position_embeddings or 0) > config.max_model_len:
            self.length_advice += f" or raise max_model_len (up to {max_position_embeddings})"
        # Of the step under way, or one that was interrupted.
        self._outputs: list[RequestOutput] = []
        # Tokens guessed by prompt lookup, and those that a form leaves no choice about.
        self.num_drafted = 0
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
        return {name: request.num_tokens for name, request in self._requests.items()} | {
            f"logits {index}": text.num_computed for index, text in enumerate(self.measured)
        }

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: Items[int],
        params: SamplingParams | None = None,
        grammar: AnswerGrammar | None = None,
        thinking: ThinkingMarks | None = None,
    ) -> None:
        """Queue a request.

        Args:
            grammar: what the answer must look like; None: what `structured_outputs` of the params
                says, from the first token on.
            thinking: how its thoughts are marked, where the params limit them.
        Raises:
            PromptError: this prompt cannot be run; the engine and all other requests are as before.
            UnsupportedError: the answer must have a form, and llguidance is not installed.
            ValueError: the id belongs to an unfinished request.
        """
        if request_id in self._requests:
            raise ValueError(f"request {request_id!r} is already running")
        settings = self.defaults.resolve(params or SamplingParams())
        index = self._num_requests_seen
        self.count_request()
        self._check_prompt(prompt_token_ids)
        check_settings(settings, self.runner.vocab_size)
        stop_token_ids = set(settings.stop_token_ids)
        if not settings.ignore_eos:
            stop_token_ids |= self._eos_token_ids
        stop_token_ids = {i for i in stop_token_ids if i < self.runner.vocab_size}
        if grammar is None and settings.structured_outputs is not None:
            grammar = write_answer_grammar(settings.structured_outputs)
        budget = settings.thinking_token_budget
        if budget is not None and thinking is None:
            raise PromptError("thinking_token_budget needs to know how thoughts are marked.")
        constraints = self._start_constraints(grammar, stop_token_ids, settings.n)
        bad_words = [ids for word in settings.bad_words for ids in self.tokenizer.spell_word(word)]
        shared_token_ids = np.array(prompt_token_ids, np.int32).tolist()
        samples = [
            RunningSample(
                Sequence(
                    request_id,
                    prompt_token_ids,
                    settings,
                    max_tokens=self._limit_tokens(len(prompt_token_ids), settings),
                    stop_token_ids=frozenset(stop_token_ids),
                    rng=np.random.default_rng(self._seed_of(settings, index, sample_index)),
                    max_draft_len=self.config.prompt_lookup_num_tokens,
                    sample_index=sample_index,
                    bad_words=bad_words,
                    constraint=constraints[sample_index],
                ),
                shared_token_ids,
                self.tokenizer.new_detokenizer(skip_special_tokens=settings.skip_special_tokens),
                self.tokenizer.decode_token,
                None if budget is None or thinking is None else ThinkingLimit(thinking, budget),
            )
            for sample_index in range(settings.n)
        ]
        self._requests[request_id] = RunningRequest(samples)
        for sample in samples:
            self.scheduler.add(sample.sequence)

    def _start_constraints(
        self, grammar: AnswerGrammar | None, stop_token_ids: set[int], count: int
    ) -> Items[Constraint | None]:
        if grammar is None:
            return [None] * count
        if self._constraints is None:
            raise PromptError("structured_outputs need a tokenizer, and this engine has none.")
        return self._constraints.start(grammar, frozenset(stop_token_ids), count)

    def _seed_of(
        self, settings: SamplingSettings, request_index: int, sample_index: int
    ) -> np.random.SeedSequence:
        """Every sample of a request has draws of its own; those of the first do not depend on n."""
        seed = [self.config.seed, request_index] if settings.seed is None else settings.seed
        return np.random.SeedSequence(seed, spawn_key=(sample_index,) if sample_index else ())

    @property
    def num_requests_seen(self) -> int:
        """How many were added or refused: draws without a seed of their own follow from it."""
        return self._num_requests_seen

    def count_request(self) -> None:
        """Use up a request's number, also a refused one's: it must not shift others' draws."""
        self._num_requests_seen += 1

    def step(self) -> list[RequestOutput]:
        """Run one batch and return an output for each request that got tokens or ended.

        Raises:
            MemoryBudgetError: no request can run while logits are read that hold too many blocks.
        """
        self.times.begin_step()
        self._masks.drop()  # of a step that was interrupted
        schedule = self.scheduler.schedule()
        self._outputs += [self._fail_for_blocks(sequence) for sequence in schedule.unschedulable]
        if schedule.chunks:
            self._masks.begin(schedule.chunks)
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
        masks = self._masks.take()
        for place, chunk in enumerate(schedule.chunks):
            rows = logits[row : row + chunk.num_samples]
            row += chunk.num_samples
            try:
                output = self._take_rows(chunk, rows, masks.get(place))
            except Exception as problem:  # a defect: it ends this answer, not the others
                # Ranks sample the same rows each: one that went on by itself would part from them.
                if self.config.model_parallel > 1:
                    raise
                output = self._fail_for_defect(self._sample_of(chunk.sequence), problem)
            if output is not None:
                self._outputs.append(output)
        self.times.end_step(schedule.chunks)

    def _take_rows(
        self, chunk: Chunk, rows: np.ndarray, masks: list[RowMask] | Exception | None
    ) -> RequestOutput | None:
        if isinstance(masks, Exception):
            raise masks
        output = self._read_prompt_rows(chunk, rows[: chunk.num_prompt_rows])
        if output is None and chunk.is_sampled:
            output = self._advance(chunk, rows[chunk.num_prompt_rows :], masks)
        return output

    def abort(self, request_id: str) -> RequestOutput | None:
        """End a request now and return what it has; None if there is no such request."""
        request = self._requests.get(request_id)
        if request is None:
            return None
        under_way = [sample for sample in request.samples if not sample.is_done]
        output = [self._finish(sample, "abort") for sample in under_way][-1]
        if not self._requests:
            self.times.pause()
        return output

    def _read_prompt_rows(self, chunk: Chunk, logits: np.ndarray) -> RequestOutput | None:
        """Take the prompt's log-probabilities where they are wanted; an output if that fails."""
        if not len(logits):
            return None
        sample = self._sample_of(chunk.sequence)
        try:
            check_finite(logits)
        except NonFiniteLogitsError:
            return self._fail_for_numbers(sample)
        sample.read_prompt_rows(logits)
        return None

    def _advance(
        self, chunk: Chunk, logits: np.ndarray, masks: list[RowMask] | None
    ) -> RequestOutput:
        """Sample one token, and another for each token of the draft that proves right.

        A row's logits are those of normal decoding as long as all drafted tokens before it are the
        sampled ones; at the first that is not, the rest is dropped.

        Args:
            masks: of the rows, if the answer has a form; those behind a guess that it does not
                allow are missing, as no such guess is sampled.
        """
        sample = self._sample_of(chunk.sequence)
        output = self._take_token(sample, logits[0], None if masks is None else masks[0])
        num_accepted = 0
        for place, guess in enumerate(chunk.draft, 1):
            if output is not None or chunk.sequence.token_ids[-1] != guess:
                break
            num_accepted += 1
            output = self._take_token(
                sample, logits[place], None if masks is None else masks[place]
            )
        self.num_drafted += len(chunk.draft)
        self.num_accepted += num_accepted
        if output is not None:
            return output
        if chunk.draft and not chunk.is_forced:
            chunk.sequence.lookup.learn(len(chunk.draft), num_accepted)
        if chunk.draft:
            self.scheduler.settle_draft(chunk, num_accepted)
        return self._make_output(sample)

    def _take_token(
        self, sample: RunningSample, logits: np.ndarray, mask: RowMask | None
    ) -> RequestOutput | None:
        """Sample, and return the last output if that was the sample's last token."""
        sequence, constraint = sample.sequence, sample.sequence.constraint
        if constraint is not None and constraint.error is not None:
            return self._fail_for_form(sample, constraint.error)
        if mask is not None and mask.is_end:
            return self._finish(sample, "stop")
        try:
            token_id = self._choose_token(sample, logits, mask and mask.allowed)
        except NonFiniteLogitsError:
            return self._fail_for_numbers(sample)
        except NoTokenLeftError:
            return self._fail_for_form(
                sample, "bad_words, stop tokens or min_new_tokens leave none"
            )
        sample.append(token_id, logits)
        if token_id in sequence.stop_token_ids:
            is_end_of_text = not sequence.settings.ignore_eos and token_id in self._eos_token_ids
            return self._finish(sample, "stop", stop_reason=None if is_end_of_text else token_id)
        sample.add_text(token_id, self._special_token_names.get(token_id))
        if sample.matcher.is_stopped:
            return self._finish(sample, "stop")
        if constraint is not None:
            constraint.accept(token_id)
            if constraint.error is not None:
                return self._fail_for_form(sample, constraint.error)
            if constraint.is_complete:
                return self._finish(sample, "stop")
        if sequence.num_tokens >= sequence.max_tokens:
            return self._finish(sample, "length")
        return None

    def _choose_token(
        self, sample: RunningSample, logits: np.ndarray, allowed: np.ndarray | None
    ) -> int:
        """Return the token that must come next, else sample one; errors as `sample_token`."""
        token_id = sample.next_token_id
        # A grammar of bytes does not end thoughts in the middle of a character.
        if token_id is None or (allowed is not None and not allowed[token_id]):
            return sample_token(logits, sample.sequence, allowed)
        check_finite(logits)
        return token_id

    def _finish(
        self,
        sample: RunningSample,
        reason: FinishReason,
        error: str | None = None,
        stop_reason: int | str | None = None,
    ) -> RequestOutput:
        self.scheduler.remove(sample.sequence)
        sample.flush_text()
        # The end of the text may complete a stop string only here: broken bytes become visible.
        if sample.matcher.is_stopped and reason in ("stop", "length"):
            reason = "stop"
            stop_reason = sample.matcher.found if stop_reason is None else stop_reason
        return self._make_output(sample, reason, error, stop_reason)

    def _make_output(
        self,
        sample: RunningSample,
        reason: FinishReason | None = None,
        error: str | None = None,
        stop_reason: int | str | None = None,
    ) -> RequestOutput:
        """Return what is new of a request, and forget it with the last of its samples."""
        request = self._requests[sample.sequence.request_id]
        output = request.make_output(sample, sample.take_output(reason, error, stop_reason))
        if request.is_done:
            del self._requests[output.request_id]
        return output

    def _sample_of(self, sequence: Sequence) -> RunningSample:
        return self._requests[sequence.request_id].samples[sequence.sample_index]

    def _fail_for_numbers(self, sample: RunningSample) -> RequestOutput:
        return self._finish(
            sample,
            "error",
            f"The network's output for token {sample.sequence.num_tokens} of this request is not "
            "a number: use params_dtype bfloat16 or float32 if it is float16, else check the "
            "checkpoint's files.",
        )

    def _fail_for_form(self, sample: RunningSample, problem: str) -> RequestOutput:
        return self._finish(
            sample,
            "error",
            f"No token {sample.sequence.num_tokens} of this request can follow in the form that "
            f"the answer must have ({problem}): make the schema or grammar simpler.",
        )

    def _fail_for_defect(self, sample: RunningSample, problem: Exception) -> RequestOutput:
        """End a sample wherever in a step it broke; text held back is left out, it may be why."""
        if self.scheduler.holds(sample.sequence):
            self.scheduler.remove(sample.sequence)
        return self._make_output(sample, "error", describe_defect(problem))

    def _fail_for_blocks(self, sequence: Sequence) -> RequestOutput:
        """End a request that the scheduler removed because the KV cache is too small for it."""
        sample = self._sample_of(sequence)
        room = (self.pool.num_blocks - self._num_measured_blocks) * self.config.block_size
        sample.flush_text()
        place = "what unfinished logits_chunks leave of the" if self.measured else "the whole"
        return self._make_output(
            sample,
            "error",
            f"The request has {sequence.num_tokens} tokens, {place} KV cache has room for {room}: "
            "raise max_device_memory, or lower max_model_len to refuse it earlier.",
        )

    def _check_prompt(self, token_ids: Items[int]) -> None:
        """Refuse a prompt that the network cannot continue.

        Raises:
            PromptError: it is empty, leaves no room for an answer, or has tokens that do not exist.
        """
        check_token_ids(token_ids, self.runner.vocab_size)
        if len(token_ids) >= self.config.max_model_len:
            raise PromptError(
                f"The prompt has {len(token_ids)} tokens and the limit is max_model_len="
                f"{self.config.max_model_len} for prompt and answer together: {self.length_advice}."
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


def check_token_ids(token_ids: Items[int], vocab_size: int) -> None:
    """Refuse what the network cannot embed.

    Raises:
        PromptError: it is no list, there is no token, or one is not in the vocabulary.
    """
    if not is_list(token_ids):
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
