"""What the caller gets back for a request."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mindformers_glm.engine.answer import Answer, ListView
from mindformers_glm.engine.logprobs import TokenLogprobs
from mindformers_glm.tokenizer.replies import ParsedReply

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class CompletionOutput:
    """One of the answers to a prompt, by the names that vLLM gives them (`outputs`).

    Attributes:
        index: its place in `outputs`.
        logprobs: of each token of `token_ids`; None unless SamplingParams asked for them.
        cumulative_logprob: the sum of those of the answer's own tokens, likewise.
        stop_reason: the stop text or the token of stop_token_ids that ended it; None otherwise.
        reply: as `RequestOutput.reply`.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[TokenLogprobs] | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None
    reply: ParsedReply | None

    def finished(self) -> bool:
        """Whether this answer is complete."""
        return self.finish_reason is not None


@dataclass(frozen=True)
class RequestOutput:
    """The state of one request after a step, or with n > 1 after one of its answers grew.

    Whoever follows an answer by the deltas pays nothing for its length; `token_ids`, `text` and
    `reply` are put together when they are asked for.

    Attributes:
        request_id: the caller's name for the request.
        prompt_token_ids: the prompt as the network saw it.
        answer: what was generated so far: `token_ids`, `text`, `turn_starts`, `reply`.
        delta_token_ids: what this step added to `token_ids`.
        delta_text: what this step added to `text`; may be empty.
        finish_reason: None while running; "stop" (end-of-text token, stop token or stop string),
            "length" (max_new_tokens, max_length or max_model_len), "abort" or "error".
        error: one sentence when `finish_reason` is "error".
        num_cached_tokens: leading tokens of the prompt whose keys and values were taken over from
            an earlier request with the same beginning.
        delta_reply: what this output adds to `reply`.
        stop_reason: the stop text or the token of stop_token_ids that ended the answer.
        prompt_logprobs: of each token of the prompt, None for the first; None unless asked for.
        samples: with n > 1 each answer as an output of its own, in which only what has just grown
            has deltas. All else here is of the first one, `finish_reason` None until all are done
            and "error" if one of them failed.
    """

    request_id: str
    prompt_token_ids: list[int]
    answer: Answer
    delta_token_ids: list[int]
    delta_text: str
    finish_reason: FinishReason | None = None
    error: str | None = None
    num_cached_tokens: int = 0
    delta_reply: ParsedReply | None = None
    stop_reason: int | str | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    samples: tuple["RequestOutput", ...] = ()

    @classmethod
    def refused(cls, request_id: str, prompt_token_ids: list[int], error: str) -> "RequestOutput":
        """Return the only output of a request that never ran."""
        nothing = Answer(ListView([]), ListView([]), ListView([]))
        return cls(request_id, prompt_token_ids, nothing, [], "", "error", error)

    @property
    def token_ids(self) -> list[int]:
        """Tokens generated so far, the one that ended the answer included."""
        return self.answer.token_ids

    @property
    def text(self) -> str:
        """The answer so far, without the stop string, and without special tokens unless wanted."""
        return self.answer.text

    @property
    def turn_starts(self) -> tuple[int, ...]:
        """Places in `text`, ascending, at which the model wrote <|assistant|> within the answer.

        With it the model begins another message, such as the next tool call. One may lie behind
        what there is of `text` so far.
        """
        return self.answer.turn_starts

    @property
    def reply(self) -> ParsedReply | None:
        """The answer so far told apart into content, reasoning and tool calls.

        None unless the prompt was a conversation (see `LLM`). What is not yet certain is in none of
        them.
        """
        return self.answer.reply

    @property
    def logprobs(self) -> list[TokenLogprobs] | None:
        """Of each token of `token_ids`: its own and the likeliest ones; None unless asked for."""
        return self.answer.logprobs

    @property
    def delta_logprobs(self) -> list[TokenLogprobs] | None:
        """The same of `delta_token_ids`."""
        entries = self.answer.token_logprobs
        return None if entries is None else entries.since(len(entries) - len(self.delta_token_ids))

    @property
    def outputs(self) -> list[CompletionOutput]:
        """All answers in vLLM's form; one unless SamplingParams.n says more."""
        return [sample._complete(index) for index, sample in enumerate(self.samples or (self,))]

    def _complete(self, index: int) -> CompletionOutput:
        total = None
        if self.logprobs is not None:
            pairs = zip(self.token_ids, self.logprobs, strict=True)
            total = sum(entry[token_id].logprob for token_id, entry in pairs)
        return CompletionOutput(
            index,
            self.text,
            self.token_ids,
            total,
            self.logprobs,
            self.finish_reason,
            self.stop_reason,
            self.reply,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, the answers whole, for JSON and the like."""
        plain = asdict(replace(self, answer=self.refused("", [], "").answer, samples=()))
        del plain["answer"], plain["samples"]
        whole = {name: getattr(self, name) for name in ("token_ids", "text", "turn_starts")}
        whole["reply"] = None if self.reply is None else asdict(self.reply)
        return plain | whole | {"outputs": [asdict(output) for output in self.outputs]}

    @property
    def finished(self) -> bool:
        """Whether this is the last output of the request."""
        return self.finish_reason is not None
