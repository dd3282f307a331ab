"""Between asyncio and the engine's thread: who waits for what, how many may, and for how long."""

import asyncio
import math
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import TypeVar

from mindformers_glm.core.errors import GlmError, first_words
from mindformers_glm.engine.engine_thread import EngineState, EngineThread, Event, Milestone
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.request_frontend import Request
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.serving.server.errors import RequestError
from mindformers_glm.serving.server.metrics import Metrics
from mindformers_glm.system.log import is_verbose, write_line

T = TypeVar("T")
_MAX_RETRY_S = 60
# Threads that write conversations and tokenize them, beside the event loop.
_NUM_ENCODERS = 2


@dataclass(frozen=True)
class Limits:
    """What the server does not exceed.

    Attributes:
        max_answers: that are computed or wait for it.
        timeout_s: of a request, from the first byte to the last token.
    """

    max_answers: int
    timeout_s: float


class EngineLink:
    """The engine as the routes see it; all but what the engine's thread calls is asyncio's."""

    def __init__(self, open_llm: Callable[[], LLM], limits: Limits, metrics: Metrics) -> None:
        self.limits = limits
        self.metrics = metrics
        self.is_draining = False
        self.on_death: Callable[[], None] = lambda: None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = EngineThread(open_llm, self._deliver, self._tell_end)
        self._encoders = ThreadPoolExecutor(_NUM_ENCODERS, thread_name_prefix="encoder")
        self._open: dict[str, Answers] = {}
        self._ids = count()
        self._num_answers = 0  # admitted, and not done yet
        self._mean_s = 1.0  # of the last requests, for Retry-After

    def start(self) -> LLM:
        """Load the model; before the event loop runs."""
        return self._thread.start()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let answers come to this event loop."""
        self._loop = loop

    def stop(self, timeout_s: float) -> None:
        """End the engine; after the event loop.

        Raises:
            GlmError: it hangs.
        """
        self._encoders.shutdown(wait=False, cancel_futures=True)
        self._thread.stop(timeout_s)

    @property
    def state(self) -> EngineState:
        """The engine's counts after its last step."""
        return self._thread.state

    @property
    def problem(self) -> BaseException | None:
        """What ended the engine."""
        return self._thread.problem

    def check_health(self) -> None:
        """Raises RequestError with status 503 where no request will be answered."""
        if self._thread.problem is not None:
            raise RequestError(503, "The engine has failed: the server is ending.")
        if self.is_draining:
            raise RequestError(
                503, "The server is shutting down: ask another one.", headers={"retry-after": "5"}
            )

    def admit(self, num_answers: int) -> "Answers":
        """Make room for a request's answers, before anything long is done for it.

        Raises:
            RequestError: there are too many already, or the server ends.
        """
        self.check_health()
        most = self.limits.max_answers
        if num_answers > most:
            raise RequestError(
                400,
                f"The request asks for {num_answers} answers, this server takes {most} at a time: "
                "ask for fewer.",
            )
        if self._num_answers + num_answers > most:
            wait_s = min(max(1, round(self._mean_s)), _MAX_RETRY_S)
            raise RequestError(
                429,
                f"The server has {self._num_answers} answers to give and takes {most}: try again "
                f"in {wait_s} s.",
                code="queue_full",
                headers={"retry-after": str(wait_s)},
            )
        self._num_answers += num_answers
        return Answers(self, num_answers)

    def new_id(self) -> str:
        """An id that no other request has."""
        return f"r{next(self._ids)}"

    async def run_beside(self, action: Callable[[], T]) -> T:
        """Run what takes long, such as tokenizing, without holding the event loop up.

        Raises:
            RequestError: for the sentence of a GlmError.
        """
        assert self._loop is not None
        try:
            return await self._loop.run_in_executor(self._encoders, action)
        except GlmError as problem:
            raise RequestError.of(problem) from None

    def submit(self, answers: "Answers", request: Request, *, whole_only: bool) -> None:
        """Give a request to the engine, whose events go to `answers`.

        Raises:
            RequestError: the engine has failed meanwhile, and would never answer.
        """
        if self._thread.problem is not None:
            raise RequestError(503, "The engine has failed: the server is ending.")
        self._open[request.request_id] = answers
        self._thread.add(request, whole_only=whole_only)

    def forget(self, request_ids: Iterable[str], num_answers: int, taken_s: float | None) -> None:
        """End what is left of requests nobody waits for any more.

        Args:
            taken_s: how long they took, None where they did not come to their end.
        """
        for request_id in request_ids:
            if self._open.pop(request_id, None) is not None:
                self._thread.abort(request_id)
        self._num_answers -= num_answers
        if taken_s is not None:
            self._mean_s += (taken_s - self._mean_s) / 16

    @property
    def num_open(self) -> int:
        """Requests that the engine has not finished."""
        return len(self._open)

    def _deliver(self, events: list[Event]) -> None:
        """In the engine's thread: one call for all that a step has brought."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(self._dispatch, events)
        except RuntimeError:
            if not self._loop.is_closed():
                raise
            # The server has ended during the step: nobody waits, and the engine ends next.

    def _dispatch(self, events: list[Event]) -> None:
        for request_id, event in events:
            answers = self._open.get(request_id)
            if answers is None:
                continue
            if isinstance(event, RequestOutput) and event.finished:
                del self._open[request_id]
            answers.put(request_id, event)

    def _tell_end(self, problem: BaseException | None) -> None:
        """In the engine's thread, as its last act."""
        if problem is not None and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._die)

    def _die(self) -> None:
        problem = self.problem
        assert problem is not None
        write_line(
            f"error: the engine has failed, {type(problem).__name__}: {first_words(problem)}"
        )
        if is_verbose():
            traceback.print_exception(problem)
        self.fail_all(RequestError(503, "The engine has failed: the answer is lost."))
        self.on_death()

    def fail_all(self, problem: RequestError) -> None:
        """Let every open request end with an error."""
        for answers in set(self._open.values()):
            answers.fail(problem)


class Answers:
    """What comes of the prompts of one HTTP request, in the order it comes.

    Made by `EngineLink.admit`; `close` must be called whatever happens.
    """

    def __init__(self, link: EngineLink, num_answers: int) -> None:
        self._link = link
        self._num_answers = num_answers
        self.requests: list[Request] = []
        self._places: dict[str, int] = {}
        self._events: deque[tuple[int, RequestOutput]] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._wake_s = math.inf  # when the waiter is woken though nothing came
        self._waker: asyncio.TimerHandle | None = None
        self._num_accepted = self._num_finished = 0
        self._problem: RequestError | None = None
        self._times = link.metrics.new_request()
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(link.limits.timeout_s, self._expire)

    def submit(self, requests: list[Request], *, whole_only: bool) -> None:
        """Give the requests to the engine.

        Raises:
            RequestError: the prompt of one cannot be run.
        """
        for request in requests:
            if request.error is not None:
                raise RequestError(400, request.error)
        self.requests = requests
        for place, request in enumerate(requests):
            self._places[request.request_id] = place
            self._link.submit(self, request, whole_only=whole_only)

    async def accepted(self) -> None:
        """Wait until the engine has queued all of them.

        Raises:
            RequestError: it refuses one.
        """
        while self._num_accepted < len(self.requests) and self._problem is None:
            await self._wait(None)
        if self._problem is not None:
            raise self._problem

    async def next(self, timeout_s: float | None = None) -> list[tuple[int, RequestOutput]] | None:
        """What is new: outputs, as read, with the places of their requests.

        Args:
            timeout_s: after which None is returned; None: wait.
        Returns:
            None where nothing is new yet; an empty list at the end.
        Raises:
            RequestError: the answer cannot be finished.
        """
        if not self._events and not self.is_done and self._problem is None:
            await self._wait(timeout_s)
        if self._events:
            found = list(self._events)
            self._events.clear()
            return found
        if self._problem is not None:
            raise self._problem
        return [] if self.is_done else None

    @property
    def is_done(self) -> bool:
        """Whether the engine has finished all requests."""
        return self._num_finished == len(self.requests) > 0

    def close(self) -> None:
        """End what is under way; may be called again."""
        if self._is_closed:
            return
        self._is_closed = True
        self._timer.cancel()
        if self._waker is not None:
            self._waker.cancel()
        taken_s = time.monotonic() - self._times.arrival_s if self.is_done else None
        self._link.forget(self._places, self._num_answers, taken_s)
        if self._num_accepted:
            self._times.end()

    def put(self, request_id: str, event: Milestone | RequestOutput) -> None:
        """Take an event of one of the requests."""
        place = self._places[request_id]
        if event is Milestone.ACCEPTED:
            self._num_accepted += 1
        elif event is Milestone.STARTED:
            self._times.start(self._link.state.begin_s)
        elif event is Milestone.FIRST_TOKEN:
            self._times.take_first()
        elif isinstance(event, RequestOutput):
            self._put_output(place, event)
        _wake(self._waiter)

    def fail(self, problem: RequestError) -> None:
        """End with an error, after what has come so far."""
        self._problem = self._problem or problem
        _wake(self._waiter)

    def _put_output(self, place: int, output: RequestOutput) -> None:
        if output.finished:
            self._num_finished += 1
        if output.error is not None:
            # Nothing was accepted: the prompt is to blame.
            was_accepted = self._num_accepted == len(self.requests)
            self.fail(RequestError(500 if was_accepted else 400, output.error))
            return
        self._times.take(output)
        self._events.append((place, self.requests[place].read(output)))

    def _expire(self) -> None:
        limit = self._link.limits.timeout_s
        self.fail(RequestError(504, f"The answer was not finished within {limit:g} s."))

    async def _wait(self, timeout_s: float | None) -> None:
        # Neither wait_for nor a timer of its own: they are made for every token.
        self._waiter = self._loop.create_future()
        self._wake_s = math.inf if timeout_s is None else self._loop.time() + timeout_s
        if self._waker is None and timeout_s is not None:
            self._waker = self._loop.call_at(self._wake_s, self._wake_late)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake_late(self) -> None:
        """Wake the waiter if it is time; else look again when it would be."""
        self._waker = None
        if self._wake_s <= self._loop.time():
            _wake(self._waiter)
        elif self._wake_s < math.inf:
            self._waker = self._loop.call_at(self._wake_s, self._wake_late)


def _wake(waiter: "asyncio.Future[None] | None") -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
