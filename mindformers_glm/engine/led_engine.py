"""One engine on all ranks of a job, of which rank 0 alone is asked.

`LLM` on ranks makes every rank call the same methods. A server or a chat has its requests on rank 0
only: it tells the others, before each step, what it has added and ended since the step before. A
step depends on nothing else, so all ranks choose the same batch and the same tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from mindformers_glm.config.environment import scheduler_host
from mindformers_glm.core.errors import GlmError, RankError, describe_defect
from mindformers_glm.engine.constraints import AnswerGrammar
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.rank_channel import Follower, Leader, Message
from mindformers_glm.engine.request_frontend import Request
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.engine.thinking_limit import ThinkingMarks
from mindformers_glm.system.interrupts import leave_at_once
from mindformers_glm.system.log import write_line

_ADD, _ABORT = "add", "abort"


class LedEngine:
    """The engine of rank 0, or of a process of its own; one thread uses it.

    Args:
        llm: loaded and warmed up, as on all other ranks, which call `follow`.
        on_loss: called once, in a thread of its own, where another rank has ended: a step under way
            will not come to its end.
    Raises:
        RankError: the other ranks do not connect.
    """

    def __init__(self, llm: LLM, on_loss: Callable[[RankError], None]) -> None:
        self._llm = llm
        self._leader: Leader | None = None
        self._told: list[list[Any]] = []  # to be, before the next step
        if llm.group.size > 1:
            self._leader = Leader(llm.group, scheduler_host())
            self._leader.watch(on_loss)

    def submit(self, request: Request) -> RequestOutput | None:
        """Queue a request; its only output where it cannot run.

        Raises:
            ValueError: the id belongs to an unfinished request.
        """
        if self._leader is not None:
            # Also one that will be refused: it counts among the numbers that draws follow from.
            self._told.append([_ADD, _write_request(request)])
        return self._llm.frontend.submit(request, self._llm.engine)

    def abort(self, request_id: str) -> None:
        """End a request; an unknown id is ignored."""
        if self._leader is not None:
            self._told.append([_ABORT, request_id])
        self._llm.engine.abort(request_id)

    def step(self) -> list[RequestOutput]:
        """Run one step on all ranks, and return as `LLMEngine.step`.

        Raises:
            RankError: another rank is gone.
        """
        if self._leader is not None:
            self._leader.send({"told": self._told})
            self._told = []
        return self._llm.engine.step()

    def close(self) -> None:
        """Let the other ranks end, and close the model."""
        if self._leader is not None:
            self._leader.end()
        self._llm.close()


def follow(llm: LLM) -> None:
    """Do what rank 0's `LedEngine` says, on every other rank, until it is closed.

    The process ends where that fails: the other ranks wait for it, and MindSpore for them.
    """
    follower = Follower(llm.group, _leave)
    try:
        while (message := follower.receive()) is not None:
            for action, what in message["told"]:
                _obey(llm, action, what)
            llm.engine.step()
        llm.close()
    except Exception as problem:
        _leave(problem)


def _obey(llm: LLM, action: str, what: Any) -> None:
    if action == _ABORT:
        llm.engine.abort(what)
        return
    request = _read_request(what)
    try:
        llm.frontend.submit(request, llm.engine)
    except Exception as problem:  # a defect that rank 0 has too, where it ends this request alone
        write_line(f"error: {describe_defect(problem)}")


def _write_request(request: Request) -> Message:
    """What the engine takes of a request, for JSON."""
    return {
        "request_id": request.request_id,
        "token_ids": request.token_ids,
        "params": asdict(request.params) | {"logit_bias": dict(request.params.logit_bias)},
        "error": request.error,
        "grammar": None if request.grammar is None else request.grammar.text,
        "thinking": None if request.thinking is None else _write_marks(request.thinking),
    }


def _read_request(written: Mapping[str, Any]) -> Request:
    grammar, thinking = written["grammar"], written["thinking"]
    return Request(
        written["request_id"],
        written["token_ids"],
        SamplingParams(**written["params"]),
        written["error"],
        grammar=None if grammar is None else AnswerGrammar(grammar),
        thinking=None if thinking is None else _read_marks(thinking),
    )


def _write_marks(marks: ThinkingMarks) -> Message:
    return {
        "starts_inside": marks.starts_inside,
        "token_tags": sorted(marks.token_tags),
        "closings": marks.closings,
    }


def _read_marks(written: Mapping[str, Any]) -> ThinkingMarks:
    return ThinkingMarks(
        written["starts_inside"],
        frozenset(written["token_tags"]),
        tuple(map(tuple, written["closings"])),
    )


def _leave(problem: Exception) -> None:
    text = str(problem) if isinstance(problem, GlmError) else describe_defect(problem)
    write_line(f"error: {text}")
    leave_at_once(1)
