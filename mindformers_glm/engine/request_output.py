"""What the caller gets back for a request."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mindformers_glm.engine.answer import Answer, ListView
from mindformers_glm.tokenizer.replies import ParsedReply

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class RequestOutput:
    """The state of one request after a step.

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
        """The answer so far, without special tokens and without the stop string."""
        return self.answer.text

    @property
    def turn_starts(self) -> tuple[int, ...]:
        """Places in `text`, ascending, at which the model wrote a special token within the answer.

        Mostly <|assistant|>, with which it begins another message, such as the next tool call. One
        may lie behind what there is of `text` so far.
        """
        return self.answer.turn_starts

    @property
    def reply(self) -> ParsedReply | None:
        """The answer so far told apart into content, reasoning and tool calls.

        None unless the prompt was a conversation (see `LLM`). What is not yet certain is in none of
        them.
        """
        return self.answer.reply

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, the answer whole, for JSON and the like."""
        plain = asdict(replace(self, answer=self.refused("", [], "").answer))
        del plain["answer"]
        whole = {name: getattr(self, name) for name in ("token_ids", "text", "turn_starts")}
        return plain | whole | {"reply": None if self.reply is None else asdict(self.reply)}

    @property
    def finished(self) -> bool:
        """Whether this is the last output of the request."""
        return self.finish_reason is not None
