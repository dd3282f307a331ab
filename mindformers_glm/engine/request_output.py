"""What the caller gets back for a request."""

from dataclasses import dataclass
from typing import Literal

from mindformers_glm.tokenizer.replies import ParsedReply

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class RequestOutput:
    """The state of one request after a step.

    Attributes:
        request_id: the caller's name for the request.
        prompt_token_ids: the prompt as the network saw it.
        token_ids: tokens generated so far, the one that ended the answer included.
        text: the answer so far, without special tokens and without the stop string.
        delta_text: what this step added to `text`.
        finish_reason: None while running; "stop" (end-of-text token, stop token or stop string),
            "length" (max_new_tokens, max_length or max_model_len), "abort" or "error".
        error: one sentence when `finish_reason` is "error".
        num_cached_tokens: leading tokens of the prompt whose keys and values were taken over from
            an earlier request with the same beginning.
        turn_starts: places in `text`, ascending, at which the model wrote a special token that did
            not end the answer: mostly <|assistant|>, with which it begins another message, such as
            the next tool call. One may lie behind what there is of `text` so far.
        reply: the answer so far told apart into content, reasoning and tool calls, where the prompt
            was a conversation (see `LLM`); what is not yet certain is in none of them. Else None.
        delta_reply: what this output adds to `reply`.
    """

    request_id: str
    prompt_token_ids: list[int]
    token_ids: list[int]
    text: str
    delta_text: str
    finish_reason: FinishReason | None = None
    error: str | None = None
    num_cached_tokens: int = 0
    turn_starts: tuple[int, ...] = ()
    reply: ParsedReply | None = None
    delta_reply: ParsedReply | None = None

    @property
    def finished(self) -> bool:
        """Whether this is the last output of the request."""
        return self.finish_reason is not None
