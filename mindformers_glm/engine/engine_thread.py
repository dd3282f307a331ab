"""An engine in a thread of its own, for programs whose requests come at any time.

All that the engine does, its loading included, happens in that one thread: MindSpore's graphs and
the operators' threads belong to it. Others leave requests and aborts in an inbox, which is emptied
between two steps, and are told what came of them by one call after each step. On ranks it is rank
0's thread, and the others follow (led_engine.py).
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain
from queue import SimpleQueue
from typing import TypeAlias

from mindformers_glm.core.errors import GlmError, RankError, describe_defect
from mindformers_glm.engine.led_engine import LedEngine
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.llm_engine import LLMEngine
from mindformers_glm.engine.request_frontend import Request
from mindformers_glm.engine.request_output import RequestOutput

_OPEN_POLL_S = 0.1  # a thread that waits without a limit answers no signal


class Milestone(Enum):
    """What happens to a request before its first token."""

    ACCEPTED = "accepted"  # the engine has queued it
    STARTED = "started"  # it has KV-cache blocks, since the beginning of the last step
    FIRST_TOKEN = "first token"  # told in place of its outputs where only the last is wanted


# (request id, what came of it); an output before ACCEPTED is a refusal, the only one.
Event: TypeAlias = "tuple[str, Milestone | RequestOutput]"
_Command: TypeAlias = Callable[[list[Event]], None]


@dataclass(frozen=True)
class EngineState:
    """Counts after a step; those of tokens and steps only grow.

    Attributes:
        num_running, num_waiting: sequences with and without KV-cache blocks.
        num_free_blocks, num_blocks: of the KV cache; what only the prefix cache holds is free.
        begin_s, step_s: when the last step began and ended, by time.monotonic.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0
    num_steps: int = 0
    num_prompt_tokens: int = 0
    num_new_tokens: int = 0
    num_preemptions: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    begin_s: float = 0.0
    step_s: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, engine: LLMEngine, begin_s: float = 0.0) -> "EngineState":
        """The counts of an engine as it is."""
        return cls(
            engine.scheduler.num_running,
            engine.scheduler.num_waiting,
            engine.pool.num_free,
            engine.pool.num_blocks,
            engine.times.num_steps,
            engine.times.num_prompt_tokens,
            engine.times.num_new_tokens,
            engine.scheduler.num_preemptions,
            engine.num_drafted,
            engine.num_accepted,
            begin_s,
        )


class EngineThread:
    """Opens a model in a thread and steps its engine there while there are requests.

    Args:
        open_llm: loads and warms up the model.
        deliver: called in the thread after each step with what is new, in its order; must not
            block, and what it raises ends the engine.
        on_end: called once when it ends, with what ended it or None where `stop` did; in the
            thread, or in another one where a rank has ended and the thread may wait for it.
    """

    def __init__(
        self,
        open_llm: Callable[[], LLM],
        deliver: Callable[[list[Event]], None],
        on_end: Callable[[BaseException | None], None] = lambda problem: None,
    ) -> None:
        self._open_llm = open_llm
        self._deliver = deliver
        self._on_end = on_end
        self._inbox: SimpleQueue[_Command | None] = SimpleQueue()
        self._is_open = threading.Event()
        self._llm: LLM | None = None
        self._led: LedEngine | None = None
        self._end_lock = threading.Lock()
        self._is_end_told = False
        self._never_run: set[str] = set()
        self._whole_only: dict[str, bool] = {}  # whether the first token was told
        self.problem: BaseException | None = None
        self.state = EngineState()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> LLM:
        """Start the thread and return the loaded model, whose engine only the thread may use.

        Raises:
            Whatever loading raised.
        """
        self._thread.start()
        while not self._is_open.wait(_OPEN_POLL_S):
            pass
        if self._llm is None:
            assert self.problem is not None
            raise self.problem
        return self._llm

    @property
    def is_alive(self) -> bool:
        """Whether requests will be answered."""
        return self._thread.is_alive() and self.problem is None

    def add(self, request: Request, *, whole_only: bool = False) -> None:
        """Queue a request; never waits.

        Args:
            request: without an `error`; its id names it in events and belongs to no other.
            whole_only: the last output is enough.
        """
        self._inbox.put(lambda events: self._add(request, whole_only, events))

    def abort(self, request_id: str) -> None:
        """End a request before the next step; no more is told of it. An unknown id is ignored."""
        self._inbox.put(lambda events: self._abort(request_id, events))

    def stop(self, timeout_s: float | None = None) -> None:
        """End all requests, close the model and wait for the thread.

        Raises:
            GlmError: the thread is still busy after `timeout_s`.
        """
        self._inbox.put(None)
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise GlmError(f"The engine did not end within {timeout_s} s: a step hangs.")

    def _run(self) -> None:
        try:
            llm = self._open_llm()
            self._led = LedEngine(llm, self._lose_rank)
            self.state = EngineState.of(llm.engine)
            self._llm = llm
            self._is_open.set()
            if self.problem is not None:
                raise self.problem
            self._serve(llm.engine, self._led)
            self._led.close()
        except BaseException as problem:  # told to whoever waits: start() or on_end
            self.problem = self.problem or problem
        finally:
            # Where loading failed, start() tells it.
            was_open = self._is_open.is_set()
            self._is_open.set()
            if was_open:
                self._tell_end()

    def _lose_rank(self, problem: RankError) -> None:
        """In another thread: this one may be in a step that waits for the rank."""
        self.problem = self.problem or problem
        if self._is_open.is_set():
            self._tell_end()

    def _tell_end(self) -> None:
        with self._end_lock:
            if self._is_end_told:
                return
            self._is_end_told = True
        self._on_end(self.problem)

    def _serve(self, engine: LLMEngine, led: LedEngine) -> None:
        while self._take_commands(is_idle=not engine.has_unfinished()):
            if not engine.has_unfinished():
                self.state = EngineState.of(engine)
                continue
            begin_s = time.monotonic()
            outputs = led.step()
            self.state = EngineState.of(engine, begin_s)
            events = self._find_started(engine)
            events += chain.from_iterable(map(self._events_of, outputs))
            if events:
                self._deliver(events)

    def _take_commands(self, *, is_idle: bool) -> bool:
        """Do what is in the inbox, waiting for the first where nothing runs; False at the end."""
        events: list[Event] = []
        is_first = is_idle
        while is_first or not self._inbox.empty():
            command = self._inbox.get()
            is_first = False
            if command is None:
                return False
            command(events)
        if events:
            self._deliver(events)
        return True

    def _add(self, request: Request, whole_only: bool, events: list[Event]) -> None:
        assert self._led is not None
        try:
            refusal = self._led.submit(request)
        except Exception as problem:  # a defect: it ends this request, not the others
            defect = describe_defect(problem)
            refusal = RequestOutput.refused(request.request_id, request.token_ids, defect)
        if refusal is not None:
            events.append((request.request_id, refusal))
            return
        self._never_run.add(request.request_id)
        if whole_only:
            self._whole_only[request.request_id] = False
        events.append((request.request_id, Milestone.ACCEPTED))

    def _abort(self, request_id: str, events: list[Event]) -> None:
        assert self._led is not None
        self._led.abort(request_id)
        self._never_run.discard(request_id)
        self._whole_only.pop(request_id, None)
        events[:] = [event for event in events if event[0] != request_id]

    def _find_started(self, engine: LLMEngine) -> list[Event]:
        if not self._never_run:
            return []
        waiting = engine.scheduler.never_run
        started = self._never_run - waiting
        self._never_run &= waiting
        return [(request_id, Milestone.STARTED) for request_id in started]

    def _events_of(self, output: RequestOutput) -> list[Event]:
        request_id = output.request_id
        was_told = self._whole_only.get(request_id)
        if was_told is None:
            return [(request_id, output)]
        events: list[Event] = [] if was_told else [(request_id, Milestone.FIRST_TOKEN)]
        self._whole_only[request_id] = True
        if output.finished:
            del self._whole_only[request_id]
            events.append((request_id, output))
        return events
