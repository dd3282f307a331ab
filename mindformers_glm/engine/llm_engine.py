"""The generation loop: add_request -> schedule -> run -> sample -> output."""

from collections.abc import Mapping
from collections.abc import Sequence as Items

import numpy as np

from mindformers_glm.backends.runner import ModelRunner
from mindformers_glm.core.errors import MemoryBudgetError, describe_defect
from mindformers_glm.engine.answer_sampler import AnswerSampler, end_for_numbers
from mindformers_glm.engine.batch import build_batch
from mindformers_glm.engine.block_pool import BlockPool
from mindformers_glm.engine.constraints import AnswerGrammar, ConstraintCompiler, RowMask
from mindformers_glm.engine.engine_config import EngineConfig
from mindformers_glm.engine.generation_defaults import GenerationDefaults
from mindformers_glm.engine.input_processor import Detokenizing, InputProcessor
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.running_request import Ending, RunningRequest, RunningSample
from mindformers_glm.engine.sampler import NonFiniteLogitsError, check_finite, keep_freed_memory
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.engine.scheduler import Chunk, Schedule, Scheduler
from mindformers_glm.engine.sequence import Sequence
from mindformers_glm.engine.step_times import StepTimes
from mindformers_glm.engine.thinking_limit import ThinkingMarks
from mindformers_glm.engine.token_masks import TokenMasks
from mindformers_glm.system.interrupts import delay_interrupts


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
        self.input_processor = InputProcessor(
            config,
            runner.vocab_size,
            tokenizer,
            eos_token_ids,
            max_position_embeddings,
            constraints,
        )
        self._answer_sampler = AnswerSampler(eos_token_ids, special_token_names)
        self._masks = TokenMasks()
        self._requests: dict[str, RunningRequest] = {}
        self.measured: list[Sequence] = []  # texts whose logits somebody reads (row_logits.py)
        self._num_requests_seen = 0
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
        number = self._num_requests_seen
        self.count_request()
        request = self.input_processor.make_request(
            request_id, number, prompt_token_ids, settings, grammar, thinking
        )
        self._requests[request_id] = request
        for sample in request.samples:
            self.scheduler.add(sample.sequence)

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
        output = [self._finish(sample, Ending("abort")) for sample in under_way][-1]
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
            return self._finish(sample, end_for_numbers(sample))
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
        take_token = self._answer_sampler.take_token
        ending = take_token(sample, logits[0], None if masks is None else masks[0])
        num_accepted = 0
        for place, guess in enumerate(chunk.draft, 1):
            if ending is not None or chunk.sequence.token_ids[-1] != guess:
                break
            num_accepted += 1
            ending = take_token(sample, logits[place], None if masks is None else masks[place])
        self.num_drafted += len(chunk.draft)
        self.num_accepted += num_accepted
        if ending is not None:
            return self._finish(sample, ending)
        if chunk.draft and not chunk.is_forced:
            chunk.sequence.lookup.learn(len(chunk.draft), num_accepted)
        if chunk.draft:
            self.scheduler.settle_draft(chunk, num_accepted)
        return self._make_output(sample)

    def _finish(self, sample: RunningSample, ending: Ending) -> RequestOutput:
        self.scheduler.remove(sample.sequence)
        sample.flush_text()
        # The end of the text may complete a stop string only here: broken bytes become visible.
        if sample.matcher.is_stopped and ending.reason in ("stop", "length"):
            found, token_id = sample.matcher.found, ending.stop_reason
            ending = Ending("stop", stop_reason=found if token_id is None else token_id)
        return self._make_output(sample, ending)

    def _make_output(self, sample: RunningSample, ending: Ending | None = None) -> RequestOutput:
        """Return what is new of a request, and forget it with the last of its samples."""
        request = self._requests[sample.sequence.request_id]
        output = request.make_output(sample, sample.take_output(ending))
        if request.is_done:
            del self._requests[output.request_id]
        return output

    def _sample_of(self, sequence: Sequence) -> RunningSample:
        return self._requests[sequence.request_id].samples[sequence.sample_index]

    def _fail_for_defect(self, sample: RunningSample, problem: Exception) -> RequestOutput:
        """End a sample wherever in a step it broke; text held back is left out, it may be why."""
        if self.scheduler.holds(sample.sequence):
            self.scheduler.remove(sample.sequence)
        return self._make_output(sample, Ending("error", describe_defect(problem)))

    def _fail_for_blocks(self, sequence: Sequence) -> RequestOutput:
        """End a request that the scheduler removed because the KV cache is too small for it."""
        sample = self._sample_of(sequence)
        room = (self.pool.num_blocks - self._num_measured_blocks) * self.config.block_size
        sample.flush_text()
        place = "what unfinished logits_chunks leave of the" if self.measured else "the whole"
        error = (
            f"The request has {sequence.num_tokens} tokens, {place} KV cache has room for {room}: "
            "raise max_device_memory, or lower max_model_len to refuse it earlier."
        )
        return self._make_output(sample, Ending("error", error))

    @property
    def _num_measured_blocks(self) -> int:
        return sum(len(text.block_table) for text in self.measured)
