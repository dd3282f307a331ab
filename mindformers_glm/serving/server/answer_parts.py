"""What an output of the engine adds to the answers of a request, in the form all routes share."""

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from mindformers_glm.engine.logprobs import TokenLogprobs
from mindformers_glm.engine.request_frontend import Request
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.tokenizer.replies import ToolCall


@dataclass(frozen=True)
class CallPart:
    """A tool call, or what it grows by.

    Attributes:
        index: its place among the calls of the answer.
        name, id: of the call; empty where it has begun before.
        arguments: JSON text.
    """

    index: int
    arguments: str
    name: str = ""
    id: str = ""


@dataclass(frozen=True)
class Part:
    """What one answer grows by; its sum is the answer.

    Attributes:
        index: of the answer, over all prompts of the request.
        text: what the model wrote; content, reasoning and calls are the same told apart, where the
            prompt was a conversation.
        token_ids, logprobs: of the new tokens; logprobs None where they were not asked for.
        prompt_index, prompt_token_ids, prompt_logprobs: of the prompt; the last of a whole answer,
            where they were asked for.
        finish_reason: "stop" or "length" at the end, "tool_calls" where it made calls; else None.
    """

    index: int
    text: str = ""
    content: str = ""
    reasoning: str = ""
    calls: tuple[CallPart, ...] = ()
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_index: int = 0
    prompt_token_ids: Sequence[int] = ()
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None


@dataclass
class Usage:
    """Tokens of a request.

    num_prompt, num_cached: of prompts, and those of them that the prefix cache had.
    num_new, num_reasoning: of answers, and of the thoughts in them, as the tokenizer counts those.
    """

    num_prompt: int = 0
    num_cached: int = 0
    num_new: int = 0
    num_reasoning: int = 0


@dataclass
class _Answer:
    num_calls: int = 0
    num_new: int = 0
    thoughts: list[str] = field(default_factory=list)
    is_done: bool = False

    def number_call(self, call: ToolCall) -> CallPart:
        """The part for a call, or for what the last one grows by."""
        if not call.name:
            return CallPart(self.num_calls - 1, call.arguments)
        self.num_calls += 1
        return CallPart(self.num_calls - 1, call.arguments, call.name, _new_call_id())


@dataclass
class PartReader:
    """Makes parts of the outputs of one request.

    Attributes:
        requests: as they were submitted.
        is_whole: each has one output, the last one.
        count_tokens: of a text within an answer.
        one_call: an answer ends with its first tool call.
        usage: what was seen so far.
    """

    requests: list[Request]
    is_whole: bool
    count_tokens: Callable[[str], int]
    one_call: bool = False
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        self._n = self.requests[0].params.n
        self._answers = [_Answer() for _ in range(self._n * len(self.requests))]
        self._prompt_logprobs: Sequence[TokenLogprobs | None] | None = None
        self._is_prompt_counted = [False] * len(self.requests)
        self.usage.num_prompt = sum(len(request.token_ids) for request in self.requests)

    @property
    def is_done(self) -> bool:
        """Whether nothing more of the answers is wanted."""
        return all(answer.is_done for answer in self._answers)

    def read(self, place: int, output: RequestOutput) -> Iterable[Part]:
        """The parts in an output of the request at a place, as `Request.read` has returned it."""
        if not self._is_prompt_counted[place]:
            self._is_prompt_counted[place] = True
            self.usage.num_cached += output.num_cached_tokens
        self._prompt_logprobs = output.prompt_logprobs if self.is_whole else None
        for sample_index, sample in enumerate(output.samples or (output,)):
            index = place * self._n + sample_index
            if self._answers[index].is_done:
                continue
            if self.is_whole or sample.delta_token_ids or sample.finished:
                yield self._read_sample(index, sample)

    def _read_sample(self, index: int, sample: RequestOutput) -> Part:
        answer = self._answers[index]
        reply = sample.reply if self.is_whole else sample.delta_reply
        token_ids = sample.token_ids if self.is_whole else sample.delta_token_ids
        logprobs = sample.logprobs if self.is_whole else sample.delta_logprobs
        calls = reply.tool_calls if reply is not None else ()
        ends = [place for place, call in enumerate(calls, 1) if not call.is_open]
        is_cut = self.one_call and bool(ends)
        calls = calls[: ends[0]] if is_cut else calls
        parts = tuple(map(answer.number_call, calls))
        answer.is_done = sample.finished or is_cut
        self._count(answer, len(token_ids), reply.reasoning if reply is not None else "")
        reason: str | None = "stop" if is_cut else sample.finish_reason
        if reason == "stop" and answer.num_calls:
            reason = "tool_calls"
        return Part(
            index,
            sample.text if self.is_whole else sample.delta_text,
            reply.content if reply is not None else "",
            reply.reasoning if reply is not None else "",
            parts,
            tuple(token_ids),
            None if logprobs is None else tuple(logprobs),
            reason,
            sample.stop_reason,
            index // self._n,
            sample.prompt_token_ids,
            self._prompt_logprobs,
        )

    def _count(self, answer: _Answer, num_new: int, thoughts: str) -> None:
        """Take note of what an output has of tokens; thoughts are counted once, at the end."""
        self.usage.num_new += num_new
        answer.num_new += num_new
        answer.thoughts.append(thoughts)
        if answer.is_done and any(answer.thoughts):
            counted = self.count_tokens("".join(answer.thoughts))
            self.usage.num_reasoning += min(counted, answer.num_new)


def join_parts(parts: Iterable[Part], num_answers: int) -> list[Part]:
    """The whole answers, by their index."""
    lists: list[list[Part]] = [[] for _ in range(num_answers)]
    for part in parts:
        lists[part.index].append(part)
    return [_join(index, own) for index, own in enumerate(lists)]


def _join(index: int, parts: list[Part]) -> Part:
    has_logprobs = any(part.logprobs is not None for part in parts)
    last = parts[-1]
    return Part(
        index,
        "".join(part.text for part in parts),
        "".join(part.content for part in parts),
        "".join(part.reasoning for part in parts),
        _join_calls(parts),
        tuple(token_id for part in parts for token_id in part.token_ids),
        tuple(entry for part in parts for entry in part.logprobs or ()) if has_logprobs else None,
        last.finish_reason,
        last.stop_reason,
        last.prompt_index,
        last.prompt_token_ids,
        last.prompt_logprobs,
    )


def _join_calls(parts: list[Part]) -> tuple[CallPart, ...]:
    calls: list[CallPart] = []
    for piece in (call for part in parts for call in part.calls):
        if piece.id:
            calls.append(piece)
        else:
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + piece.arguments)
    return tuple(calls)


def _new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
