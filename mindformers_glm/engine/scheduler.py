"""Which tokens of which sequences go into the next step.

Continuous batching with chunked prefill: every step takes one token of each decoding sequence
first, so that a long prompt does not hold up the answers under way, and fills the rest of the
token budget with prompts in the order they came. The ideas are those of Orca (Yu et al. 2022),
vLLM (Kwon et al. 2023, arXiv:2309.06180: recomputation of the preempted) and Sarathi-Serve
(Agrawal et al. 2024, arXiv:2403.02310: chunked prefill). What is left of budget and blocks goes to
drafts of what decoding sequences will say next: what the form of the answer leaves no choice about,
or guesses (prompt_lookup.py).

With prefix caching, a sequence that begins like another one holds the same KV-cache blocks for the
beginning, so a shared prompt is computed once.
"""

from collections import deque
from dataclasses import dataclass, field, replace

from mindformers_glm.engine.block_pool import BlockPool
from mindformers_glm.engine.engine_config import EngineConfig
from mindformers_glm.engine.kv_cache_manager import KVCacheManager
from mindformers_glm.engine.sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Tokens [start, end) of one sequence, and a guess of those after them.

    is_sampled: the last row's logits are wanted; only the last chunk of what is pending tells the
        next token.
    draft: guessed tokens of positions end, end + 1, ...; their logits are wanted too.
    is_forced: the draft is no guess: the answer's form leaves no choice.
    num_prompt_rows: rows of the prompt whose logits are wanted besides, the last ones before these.
    """

    sequence: Sequence
    start: int
    end: int
    is_sampled: bool
    draft: tuple[int, ...] = ()
    num_prompt_rows: int = 0
    is_forced: bool = False

    @property
    def num_rows(self) -> int:
        """Rows of the step that are this chunk's."""
        return self.end - self.start + len(self.draft)

    @property
    def num_samples(self) -> int:
        """Rows whose logits are wanted: of the prompt, and the last token's and the draft's."""
        return self.num_prompt_rows + (1 + len(self.draft) if self.is_sampled else 0)


@dataclass
class Schedule:
    """One step: the chunks to run, and the sequences that can never run.

    num_tokens: rows of all chunks.
    """

    chunks: list[Chunk] = field(default_factory=list)
    unschedulable: list[Sequence] = field(default_factory=list)
    num_tokens: int = 0


class Scheduler:
    """First come, first served, within a token budget and a pool of KV-cache blocks.

    A sequence is admitted when blocks for all its present tokens are free, and takes them then; so
    only decoding can run out of blocks. The youngest running sequence then gives its blocks back
    and waits, first in line, to be computed again with the tokens it has generated so far. The
    oldest one is never preempted, so there is always progress.
    """

    def __init__(self, config: EngineConfig, pool: BlockPool) -> None:
        self._config = config
        self._kv_cache = KVCacheManager(config, pool)
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []  # oldest first
        self.num_preemptions = 0

    @property
    def num_running(self) -> int:
        """Sequences that hold KV-cache blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that hold none."""
        return len(self._waiting)

    @property
    def never_run(self) -> set[str]:
        """Ids of the requests with a sequence that has never held a block."""
        return {
            sequence.request_id for sequence in self._waiting if sequence.num_cached_tokens is None
        }

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        self._waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that ended and free its blocks."""
        self._undo_interrupted()
        queue = self._running if sequence in self._running else self._waiting
        queue.remove(sequence)
        self._kv_cache.release(sequence)

    def holds(self, sequence: Sequence) -> bool:
        """Whether a sequence was added and not removed since."""
        return sequence in self._running or sequence in self._waiting

    def schedule(self) -> Schedule:
        """Choose the next step; `complete` must follow once it has run.

        Sequences in `unschedulable` are removed already: they need more blocks than there are.
        """
        self._undo_interrupted()
        for sequence in self._running:
            # An interrupt may have come when the last token was computed and nothing sampled yet.
            sequence.num_computed = min(sequence.num_computed, sequence.num_tokens - 1)
        schedule = Schedule()
        self._schedule_decodes(schedule)
        budget = self._config.max_num_batched_tokens
        if self._config.prefill_tokens_beside_decode:
            self._share_among_prompts(schedule, budget)
        else:
            self._schedule_running_prefills(schedule)
            self._admit_waiting(schedule, budget)
        self._add_drafts(schedule)
        return schedule

    def complete(self, schedule: Schedule) -> None:
        """Note that K and V of the step's tokens are in the cache now."""
        self._kv_cache.end_step()
        for chunk in schedule.chunks:
            chunk.sequence.num_computed = chunk.end

    def settle_draft(self, chunk: Chunk, num_accepted: int) -> None:
        """Count the draft's right tokens as computed, free the blocks that only wrong ones needed.

        The sequence holds the right tokens by now. K and V of the wrong ones stay in the cache
        until the next tokens overwrite them. No other sequence reads them: only blocks that are
        full of right tokens are registered.
        """
        sequence = chunk.sequence
        sequence.num_computed = chunk.end + num_accepted
        self._kv_cache.keep_computed(sequence, chunk.end)

    def _schedule_decodes(self, schedule: Schedule) -> None:
        for sequence in list(self._running):
            if schedule.num_tokens == self._config.max_num_batched_tokens:
                return
            # The list is a copy: a sequence in it may have been preempted for an older one.
            if sequence not in self._running or sequence.num_pending != 1:
                continue
            if self._make_room(sequence, schedule):
                self._append_chunk(schedule, sequence, self._config.max_num_batched_tokens)

    def _make_room(self, sequence: Sequence, schedule: Schedule) -> bool:
        """Allocate the block for one more token; False if `sequence` itself had to go."""
        while not self._kv_cache.allocate(sequence):
            victim = self._running[-1]
            if victim is sequence and len(self._running) == 1:
                self.remove(sequence)
                schedule.unschedulable.append(sequence)
                return False
            self._requeue(victim)
            self.num_preemptions += 1
            if victim is sequence:
                return False
        return True

    def _schedule_running_prefills(self, schedule: Schedule) -> None:
        for sequence in self._running:
            if sequence.num_pending > 1:
                self._append_chunk(schedule, sequence, self._config.max_num_batched_tokens)

    def _share_among_prompts(self, schedule: Schedule, budget: int) -> None:
        """Fill the step for people who wait: neither answers nor short prompts stand still.

        Beside answers under way, prompts get as many rows as these, or the configured number where
        that is more. Half is open to prompts that wait to begin. Of the rest, half is for the one
        that has least left: read one after the other, most begin their answers sooner than side by
        side. The others get equal shares, so a long one is never forgotten, and what a short one
        does not need goes to the longer ones.
        """
        num_decodes = schedule.num_tokens
        if num_decodes:
            room = max(self._config.prefill_tokens_beside_decode, num_decodes)
            budget = min(budget, num_decodes + room)
        begun = [sequence for sequence in self._running if sequence.num_pending > 1]
        room = budget - schedule.num_tokens
        self._admit_waiting(schedule, budget - room // 2 if begun else budget)
        begun.sort(key=lambda sequence: sequence.num_pending)  # stable: the older one first
        for place, sequence in enumerate(begun):
            left = budget - schedule.num_tokens
            # Rounded up, or the last rows would be nobody's.
            share = -(-left // (len(begun) - place))
            if place == 0:
                share = max(share, left // 2)
            self._append_chunk(schedule, sequence, schedule.num_tokens + share)

    def _admit_waiting(self, schedule: Schedule, budget: int) -> None:
        while self._waiting and schedule.num_tokens < budget:
            if len(self._running) == self._config.max_num_seqs:
                return
            sequence = self._waiting[0]
            if not self._kv_cache.can_ever_hold(sequence):
                schedule.unschedulable.append(self._waiting.popleft())
                continue
            # One spare block for each running sequence: without it a newcomer could be preempted
            # in the very next step, and its prompt computed for nothing.
            if not self._kv_cache.start(sequence, num_spare=len(self._running)):
                return
            self._running.append(self._waiting.popleft())
            self._append_chunk(schedule, sequence, budget)

    def _append_chunk(self, schedule: Schedule, sequence: Sequence, budget: int) -> None:
        """Let the step compute what is pending of a sequence, up to `budget` rows of all."""
        end = min(sequence.num_tokens, sequence.num_computed + budget - schedule.num_tokens)
        if end > sequence.num_computed:
            is_sampled = end == sequence.num_tokens
            # All rows of a prompt are read before a token is generated: none lies behind these.
            first_unread = max(sequence.num_computed, sequence.num_prompt_rows_read)
            num_prompt_rows = max(min(end, sequence.num_prompt_tokens - 1) - first_unread, 0)
            schedule.chunks.append(
                Chunk(
                    sequence,
                    sequence.num_computed,
                    end,
                    is_sampled,
                    num_prompt_rows=num_prompt_rows,
                )
            )
            schedule.num_tokens += end - sequence.num_computed
            self._kv_cache.fill(sequence, end)

    def _undo_interrupted(self) -> None:
        """Requeue what started on blocks that a step was to fill which never came to its end."""
        for sequence in self._kv_cache.withdraw_unfilled(self._running):
            self._requeue(sequence)
        self._kv_cache.end_step()

    def _add_drafts(self, schedule: Schedule) -> None:
        """Let decoding sequences guess ahead; nobody else gets fewer rows or blocks for it.

        Drafts fill a step up to the rows that one sequence alone may have. So few rows cost little
        more than one, because a step reads all weights once for all of them; in a larger step each
        row costs its arithmetic, and a wrong guess time.
        """
        max_rows = min(
            self._config.max_num_batched_tokens, 1 + self._config.prompt_lookup_num_tokens
        )
        for index, chunk in enumerate(schedule.chunks):
            sequence = chunk.sequence
            if not chunk.is_sampled or chunk.num_rows > 1:
                continue
            limit = min(
                max_rows - schedule.num_tokens,
                self._kv_cache.count_room(sequence) - chunk.end,
                sequence.max_tokens - chunk.end - 1,  # one token comes without a guess
            )
            if limit < 1:
                continue
            constraint = sequence.constraint
            draft = [] if constraint is None else constraint.list_forced()[:limit]
            is_forced = bool(draft)
            if not is_forced:
                draft = sequence.lookup.propose(sequence.token_ids, limit)
                draft = draft if constraint is None else draft[: constraint.count_allowed(draft)]
            if draft:
                self._kv_cache.allocate(sequence, num_ahead=len(draft))
                schedule.chunks[index] = replace(chunk, draft=tuple(draft), is_forced=is_forced)
                schedule.num_tokens += len(draft)

    def _requeue(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._kv_cache.release(sequence)
        sequence.num_computed = 0
        self._waiting.appendleft(sequence)
