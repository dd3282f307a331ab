"""What a request of any route asks for, and how the answer is written in the route's form."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mindformers_glm.engine.llm_arguments import Prompt, ToolChoice
from mindformers_glm.engine.request_frontend import Tools
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.serving.server.answer_parts import Part, Usage
from mindformers_glm.serving.server.event_stream import ErrorEvent, SseEvent
from mindformers_glm.tokenizer.chat import NO_OPTIONS, ChatOptions


class AnswerForm(Protocol):
    """Writes the answers to one request."""

    def begin(self, usage: Usage) -> Iterable[SseEvent]:
        """The events before the first part of a stream."""
        ...

    def stream(self, part: Part, usage: Usage) -> Iterable[SseEvent]:
        """The events of a part."""
        ...

    def end(self, usage: Usage) -> Iterable[SseEvent]:
        """The events after the last part."""
        ...

    def whole(self, answers: Sequence[Part], usage: Usage) -> Any:
        """The JSON of an answer that is sent at once; each part is a whole answer."""
        ...


@dataclass(frozen=True)
class Asked:
    """A request that was understood.

    Attributes:
        prompts: texts to be gone on with as they are, token ids, or conversations.
        tools, tool_choice, options: of conversations.
        form: writes the answers.
        error_event: writes an error into the stream.
        is_stream: the answer comes as events.
        one_call: an answer ends with its first tool call.
        ignored: fields that were not read.
    """

    prompts: Sequence[Prompt]
    params: SamplingParams
    form: AnswerForm
    error_event: ErrorEvent
    is_stream: bool = False
    tools: Tools | None = None
    tool_choice: ToolChoice = "auto"
    options: ChatOptions = NO_OPTIONS
    one_call: bool = False
    ignored: Sequence[str] = field(default_factory=tuple)
