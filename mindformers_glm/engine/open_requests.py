"""Requests of an LLM that somebody waits for: queued, stepped together, handed out, ended."""

from collections import defaultdict, deque
from collections.abc import Generator, Iterator
from collections.abc import Sequence as Items
from typing import Any

from mindformers_glm.core.errors import GlmError
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.engine.agreement import check_requests_are_shared
from mindformers_glm.engine.generation_bar import GenerationBar
from mindformers_glm.engine.llm_arguments import Prompt, ToolChoice, spread_params
from mindformers_glm.engine.llm_engine import LLMEngine
from mindformers_glm.engine.one_thread import OneThread
from mindformers_glm.engine.request_frontend import Request, RequestFrontend, Tools
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.tokenizer.chat import NO_OPTIONS, ChatOptions


class OpenRequests:
    """The requests of one LLM, and the engine that runs them until it is closed.

    Several callers may wait in turns: what a step brings for others is kept for them. Its length is
    the number of requests that somebody waits for.

    Attributes:
        one_thread: what every call of the engine goes through.
    """

    def __init__(self, frontend: RequestFrontend, engine: LLMEngine, group: ProcessGroup) -> None:
        self.one_thread = OneThread()
        self._frontend = frontend
        self._engine: LLMEngine | None = engine
        self._group = group
        self._num_requests = 0
        self._undelivered: defaultdict[str, deque[RequestOutput]] = defaultdict(deque)
        self._requests: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def engine(self) -> LLMEngine:
        """What runs the requests.

        Raises:
            GlmError: it is closed.
        """
        if self._engine is None:
            raise GlmError("This LLM is closed: create a new one.")
        return self._engine

    def close(self) -> None:
        """Give the engine's memory back."""
        with self.one_thread:
            if self._engine is not None:
                self._engine.runner.close()
            self._engine = None

    def answer_all(
        self,
        prompts: Items[Any],
        sampling_params: SamplingParams | Items[SamplingParams] | None,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        options: ChatOptions = NO_OPTIONS,
        is_parallel: bool = True,
    ) -> list[RequestOutput]:
        """Run prompts or conversations together; their last outputs, in their order."""
        params = spread_params(sampling_params, len(prompts))
        requests = [
            (*asked, tools, tool_choice, options, is_parallel)
            for asked in zip(prompts, params, strict=True)
        ]
        outputs: dict[int, RequestOutput] = {}
        for step in self.run_together(requests):
            outputs |= {place: output for place, output in step if output.finished}
        return [outputs[place] for place in range(len(prompts))]

    def run_together(
        self, requests: Items[tuple[Any, ...]], is_text_shown: bool = False
    ) -> Generator[list[tuple[int, RequestOutput]], None, None]:
        """Run what `add` takes, and yield as `LLM.generate_steps` does."""
        request_ids: list[str] = []
        try:
            for request in requests:
                request_ids.append(self.add(*request))
            self.check_ranks_agree(request_ids)
            places = {request_id: place for place, request_id in enumerate(request_ids)}
            num_prompt_tokens = sum(len(self._requests[i].token_ids) for i in request_ids)
            num_finished = 0
            with GenerationBar(
                self.engine.times, len(request_ids), num_prompt_tokens, is_text_shown
            ) as bar:
                for outputs in self.collect(request_ids):
                    num_finished += sum(output.finished for output in outputs)
                    bar.show(num_finished)
                    yield [(places[output.request_id], output) for output in outputs]
        finally:
            self.discard(request_ids)

    def add(
        self,
        prompt: Prompt,
        params: SamplingParams | None,
        tools: Tools | None,
        tool_choice: ToolChoice,
        options: ChatOptions,
        is_parallel: bool = True,
    ) -> str:
        """Queue a prompt; what is wrong with it becomes its only output."""
        with self.one_thread:
            request_id = str(self._num_requests)
            self._num_requests += 1
            request = self._frontend.new_request(
                request_id,
                prompt,
                params,
                tools,
                tool_choice,
                options,
                parallel_tool_calls=is_parallel,
            )
            refusal = self._frontend.submit(request, self.engine)
            if refusal is not None:
                self._undelivered[request_id].append(refusal)
            self._requests[request_id] = request
            return request_id

    def check_ranks_agree(self, request_ids: Items[str]) -> None:
        """Compare them with what the other ranks were asked; nothing where there is one rank."""
        if self._group.size == 1:
            return
        earlier = self.engine.num_tokens_under_way
        for request_id in request_ids:
            earlier.pop(request_id, None)
        requests = [self._requests[i] for i in request_ids]
        asked = [(each.token_ids, (each.params, each.grammar)) for each in requests]
        check_requests_are_shared(self._group, asked, earlier)

    def collect(self, request_ids: Items[str]) -> Iterator[list[RequestOutput]]:
        """Step until these requests are done, yield their outputs; others' are kept for them."""
        open_ids = set(request_ids)
        while open_ids:
            with self.one_thread:
                outputs = self._take(open_ids)
            yield outputs
            if open_ids:
                with self.one_thread:
                    for output in self.engine.step():
                        self._undelivered[output.request_id].append(output)

    def _take(self, open_ids: set[str]) -> list[RequestOutput]:
        """What has come for these requests; those that are done are removed from `open_ids`."""
        outputs = [
            self._requests[request_id].read(output)
            for request_id in [i for i in self._undelivered if i in open_ids]
            for output in self._undelivered.pop(request_id)
        ]
        open_ids -= {output.request_id for output in outputs if output.finished}
        return outputs

    def discard(self, request_ids: Items[str]) -> None:
        """End what is left of requests that nobody waits for any more."""

        def end() -> None:
            for request_id in request_ids:
                self._undelivered.pop(request_id, None)
                self._requests.pop(request_id, None)
                if self._engine is not None:
                    self._engine.abort(request_id)

        self.one_thread.run_when_free(end)
