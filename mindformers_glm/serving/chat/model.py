"""What a chat talks to: the model in this process, by one step of the engine after the other.

On ranks it is rank 0 that talks, and the others follow.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from mindformers_glm.core.errors import PromptError
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.tokenizer.replies import ParsedReply

if TYPE_CHECKING:
    from mindformers_glm.engine.led_engine import LedEngine
    from mindformers_glm.engine.llm import LLM

Message = Mapping[str, Any]
NO_REPLY = ParsedReply()


@dataclass(frozen=True)
class Piece:
    """What one step adds to an answer; nothing for a step that only read the prompt.

    num_tokens: tokens of the answer that it holds; of a server's last piece: of all pieces.
    finish_reason: why the answer is over; None while it is not.
    """

    reply: ParsedReply = NO_REPLY
    num_tokens: int = 0
    finish_reason: str | None = None


def assistant_message(reply: ParsedReply, place: int, *, has_calls: bool) -> dict[str, Any]:
    """Return an answer as a message of OpenAI's form.

    Args:
        place: its number in the conversation, for the names of calls that came without one.
        has_calls: whether its calls stand in it; those of a stopped answer do not.
    """
    message: dict[str, Any] = {"role": "assistant", "content": reply.content}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if reply.tool_calls and has_calls:
        message["tool_calls"] = [
            {
                "id": call.id or f"call_{place}_{number}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for number, call in enumerate(reply.tool_calls)
        ]
    return message


class ChatModel(Protocol):
    """Answers conversations.

    raises_when_stopped: whether Ctrl-C may raise in the middle of `answer`; else it waits for the
        end of a step.
    """

    name: str
    raises_when_stopped: bool

    def answer(
        self, messages: Sequence[Message], tools: Sequence[Any]
    ) -> Generator[Piece, None, None]:
        """Answer a conversation in OpenAI's form; closing it early ends the request.

        Raises:
            GlmError: it cannot be answered.
        """
        ...

    def close(self) -> None:
        """End after the last answer."""
        ...


class LocalModel:
    """`LLM` in this process.

    Args:
        led: steps its engine, and those of other ranks.
    """

    raises_when_stopped = False  # a step that is cut in two would leave the engine in between

    def __init__(self, llm: "LLM", led: "LedEngine", name: str, params: SamplingParams) -> None:
        self.name = name
        self._frontend, self._led, self._params = llm.frontend, led, params
        self._num_answers = 0

    def answer(
        self, messages: Sequence[Message], tools: Sequence[Any]
    ) -> Generator[Piece, None, None]:
        """Answer a conversation; closing it gives the request's KV-cache blocks back."""
        self._num_answers += 1
        request_id = f"chat-{self._num_answers}"
        request = self._frontend.new_request(
            request_id, messages, self._params, list(tools) or None
        )
        refusal = self._led.submit(request)
        if refusal is not None:
            raise PromptError(str(refusal.error))
        is_over = False
        try:
            while not is_over:
                outputs = [request.read(output) for output in self._led.step()]
                for output in outputs:
                    if output.error is not None:
                        raise PromptError(output.error)
                    reply = output.delta_reply
                    if reply is None:
                        reply = ParsedReply(output.delta_text)
                    is_over = is_over or output.finished
                    yield Piece(reply, len(output.delta_token_ids), output.finish_reason)
                if not outputs:
                    yield Piece()
        finally:
            self._led.abort(request_id)

    def close(self) -> None:
        """Let other ranks end."""
        self._led.close()
