"""From what a caller asks to a request for the engine, and from the engine's outputs to replies.

`LLM` does both ends in its caller's thread. A server makes requests in any thread, submits them in
the one that steps the engine, and reads the outputs of each request in one thread.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace
from typing import Any, Literal

from mindformers_glm.core.errors import PromptError
from mindformers_glm.engine.answer_grammar import (
    AnswerStart,
    start_of_text,
    write_answer_grammar,
)
from mindformers_glm.engine.constraints import AnswerGrammar, ConstraintCompiler
from mindformers_glm.engine.generation_defaults import DEFAULT_MAX_NEW_TOKENS
from mindformers_glm.engine.input_processor import check_token_ids
from mindformers_glm.engine.llm_arguments import (
    Prompt,
    ToolChoice,
    ToolDemand,
    check_params,
    check_tools,
    is_list,
    read_tool_choice,
)
from mindformers_glm.engine.llm_engine import LLMEngine
from mindformers_glm.engine.reply_reader import ReplyParsers, ReplyReader
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.engine.structured_outputs import StructuredOutputsParams
from mindformers_glm.engine.thinking_limit import ThinkingMarks
from mindformers_glm.system.log import note
from mindformers_glm.tokenizer import GlmTokenizer, TokenIdsOnly
from mindformers_glm.tokenizer.chat import NO_OPTIONS, ChatOptions, offered_tools

Tools = Items[Mapping[str, Any]]


@dataclass(frozen=True)
class Request:
    """A prompt made ready for the engine, or the reason why it cannot be.

    Attributes:
        request_id: names it among all that are under way.
        token_ids: the prompt as the network will see it; empty where there is an `error`.
        error: one sentence that says what is wrong with the prompt.
        reply_readers: read the answers to a conversation, one each; none for any other prompt.
        grammar: what the answer must look like from its first token on; None: like anything.
        thinking: how its thoughts are marked, where the params limit them.
    """

    request_id: str
    token_ids: list[int]
    params: SamplingParams
    error: str | None = None
    reply_readers: tuple[ReplyReader, ...] = ()
    grammar: AnswerGrammar | None = None
    thinking: ThinkingMarks | None = None

    def read(self, output: RequestOutput) -> RequestOutput:
        """Return one of the request's outputs with its `reply`, in the order they came."""
        if not self.reply_readers:
            return output
        if not output.samples:
            return self.reply_readers[0].read(output)
        pairs = zip(self.reply_readers, output.samples, strict=True)
        samples = tuple(reader.read(sample) for reader, sample in pairs)
        first = samples[0]
        return replace(output, answer=first.answer, delta_reply=first.delta_reply, samples=samples)


class RequestFrontend:
    """Encodes prompts as one checkpoint wants them, and hands them to an engine.

    Args:
        reply_parsers: what reads answers to conversations; resolved, none is "auto".
        apply_chat_template: whether a text is a user's message; "auto": where there is a template
            or a chat format, unless the model is a base model.
        chat_options: how conversations are written where a request does not say it.
        constraints: compiles the forms that answers must have, and should be the engine's; None:
            they are compiled when the engine gets them.
        max_prompt_tokens: longer ones need not be tokenized; None: there is no limit.
    """

    def __init__(
        self,
        tokenizer: GlmTokenizer,
        reply_parsers: ReplyParsers,
        apply_chat_template: bool | Literal["auto"] = "auto",
        chat_options: ChatOptions = NO_OPTIONS,
        constraints: ConstraintCompiler | None = None,
        max_prompt_tokens: int | None = None,
    ) -> None:
        self._max_prompt_tokens = max_prompt_tokens
        self._tokenizer = tokenizer
        self.reply_parsers = reply_parsers
        self._chat_options = chat_options
        self._constraints = constraints
        self._is_length_noted = self._is_plain_text_noted = False
        if apply_chat_template == "auto":
            has_template = tokenizer.has_chat_template and not tokenizer.is_base_model
            apply_chat_template = has_template or chat_options.chat_template is not None
        else:
            self._is_plain_text_noted = True  # somebody has chosen it
        self._writes_text_as_message = apply_chat_template

    def new_request(
        self,
        request_id: str,
        prompt: Prompt,
        params: SamplingParams | None = None,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        chat_options: ChatOptions = NO_OPTIONS,
        *,
        parallel_tool_calls: bool = True,
    ) -> Request:
        """Encode a prompt; what is wrong with it becomes the request's `error`.

        Args:
            params: None: as the checkpoint says.
            tools: descriptions of functions that the model may call.
            tool_choice: "none": the model is not told of them, and nothing is taken for a call;
                "required" or a tool's name: the answer is calls, whatever form it should have.
            chat_options: how a conversation is written.
            parallel_tool_calls: whether the answer may have several calls; else those behind the
                first are left out.
        Raises:
            ConfigError: `params`, `tools` or `tool_choice` is another thing, the checkpoint has no
                chat template, or the template does not read an option.
            UnsupportedError: the answer must have a form, and llguidance is not installed.
            CheckpointError: its chat template is broken.
        """
        check_params(params)
        check_tools(tools)
        demand = read_tool_choice(tool_choice)
        tools = tools if demand.may_call else None
        params = params or SamplingParams()
        try:
            token_ids, is_chat = self.encode(prompt, tools, chat_options)
            is_continued = bool(chat_options.over(self._chat_options).continue_final_message)
            thinking = None
            if params.thinking_token_budget is not None:
                thinking = self._mark_thoughts(params, token_ids, is_chat, is_continued)
            grammar = None
            if params.structured_outputs is not None or demand.must_call:
                start = None
                if is_chat:
                    start = self.reply_parsers.start_of_answer(
                        self._tokenizer, token_ids, is_continued=is_continued
                    )
                messages: Items[Any] = [] if isinstance(prompt, str) else prompt
                offered = offered_tools(messages, tools)
                grammar = self._write_grammar(
                    params, start, offered, demand, is_continued, parallel_tool_calls
                )
        except PromptError as problem:
            return Request(request_id, [], params, str(problem))
        if not is_chat:
            return Request(request_id, token_ids, params, grammar=grammar, thinking=thinking)
        readers = tuple(
            self.reply_parsers.new_reader(
                self._tokenizer,
                token_ids,
                prompt,
                tools,
                calls_tools=demand.may_call,
                is_continued=is_continued,
                one_call=not parallel_tool_calls,
            )
            for _ in range(params.n)
        )
        return Request(request_id, token_ids, params, None, readers, grammar, thinking)

    def _mark_thoughts(
        self, params: SamplingParams, token_ids: Items[int], is_chat: bool, is_continued: bool
    ) -> ThinkingMarks:
        if isinstance(self._tokenizer, TokenIdsOnly):
            raise PromptError(f"thinking_token_budget is of text: {self._tokenizer.refusal}")
        check_token_ids(token_ids, self._tokenizer.num_token_ids)
        if params.structured_outputs is not None and not is_chat:
            raise PromptError(
                "An answer to a prompt that is no conversation has its form from the first token "
                "on, so it has no thoughts: leave out thinking_token_budget."
            )
        return self.reply_parsers.marks_of_thoughts(
            self._tokenizer, token_ids, is_continued=is_continued or not is_chat
        )

    def _write_grammar(
        self,
        params: SamplingParams,
        start: AnswerStart | None,
        tools: Items[Mapping[str, Any]],
        demand: ToolDemand,
        is_continued: bool,
        is_parallel: bool,
    ) -> AnswerGrammar:
        """Return what an answer must look like, compiled already.

        Args:
            start: what comes before its content; None: the prompt is no conversation.
        """
        if isinstance(self._tokenizer, TokenIdsOnly):
            raise PromptError(f"structured_outputs are of text: {self._tokenizer.refusal}")
        form = params.structured_outputs
        assert form is None or isinstance(form, StructuredOutputsParams), "the params are checked"
        calls = None
        if demand.must_call and (start is None or is_continued):
            raise PromptError(
                "tool_choice demands a call, which only an answer to a conversation can be, and "
                "none that goes on with a message."
            )
        if demand.must_call or (
            start is not None and tools and demand.may_call and self.reply_parsers.knows_calls
        ):
            calls = self.reply_parsers.rules_of_calls(
                self._tokenizer,
                tools,
                name=demand.name,
                is_parallel=is_parallel and demand.name is None,
            )
        if start is None:
            start = start_of_text(form, self._tokenizer.vocabulary.has_dummy_prefix)
        grammar = write_answer_grammar(None if demand.must_call else form, start, calls)
        if self._constraints is not None:
            self._constraints.check(grammar)
        return grammar

    def submit(self, request: Request, engine: LLMEngine) -> RequestOutput | None:
        """Queue a request; return its only output where it cannot run.

        Raises:
            ValueError: the id belongs to an unfinished request.
        """
        error = request.error
        if (
            error is None
            and isinstance(self._tokenizer, TokenIdsOnly)
            and (request.params.bad_words or engine.defaults.resolve(request.params).stop)
        ):
            error = (
                "stop and bad_words look for text (stop_token_ids and logit_bias do not): "
                f"{self._tokenizer.refusal}"
            )
        if error is not None:
            engine.count_request()
        else:
            try:
                engine.add_request(
                    request.request_id,
                    request.token_ids,
                    request.params,
                    request.grammar,
                    request.thinking,
                )
            except PromptError as problem:
                error = str(problem)
        if error is not None:
            return RequestOutput.refused(request.request_id, request.token_ids, error)
        if not self._is_length_noted and not engine.defaults.has_length_limit(request.params):
            self._is_length_noted = True
            note(
                f"no length limit is set: answers end after {DEFAULT_MAX_NEW_TOKENS} tokens "
                "(max_new_tokens changes it)"
            )
        return None

    def encode(
        self,
        prompt: Prompt,
        tools: Tools | None = None,
        chat_options: ChatOptions = NO_OPTIONS,
    ) -> tuple[list[int], bool]:
        """Return a prompt's token ids, and whether the chat template wrote them.

        Raises:
            PromptError: it is none, or cannot be written.
            ConfigError, CheckpointError: as `new_request`.
        """
        if isinstance(prompt, str) and self._writes_text_as_message:
            prompt, tools = [{"role": "user", "content": prompt}], tools or None
        if isinstance(prompt, str):
            _refuse_tools(tools)
            token_ids = self.encode_text(prompt)
            self._note_plain_text()
            return token_ids, False
        if not is_list(prompt):
            raise PromptError(
                "A prompt must be a text, a list of token ids or a list of messages, got a "
                f"{type(prompt).__name__}."
            )
        if len(prompt) > 0 and isinstance(prompt[0], Mapping):
            options = chat_options.over(self._chat_options)
            return self._tokenizer.encode_chat(
                prompt,  # type: ignore[arg-type]
                tools,
                options,
                self._max_prompt_tokens,
            ), True
        _refuse_tools(tools)
        return list(prompt), False  # type: ignore[arg-type]

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of a text that is taken as it is.

        Raises:
            PromptError: it cannot be written, or is too long for any answer.
        """
        return self._tokenizer.encode(text, self._max_prompt_tokens)

    def _note_plain_text(self) -> None:
        """Say once why a text is not made a message where nobody has said how it is taken."""
        if self._is_plain_text_noted:
            return
        self._is_plain_text_noted = True
        why, advice = "the checkpoint has no chat template", "chat_template gives one"
        if self._tokenizer.is_base_model:
            why = "this is a base model, which goes on with a text"
        if self._tokenizer.has_chat_template:
            advice = "apply_chat_template True makes conversations of them"
        note(f"{why}: prompts are taken as they are ({advice})")


def _refuse_tools(tools: Tools | None) -> None:
    if tools:
        raise PromptError(
            "tools are written by the chat template, and this prompt is taken as it is: give "
            "messages, or a text with apply_chat_template."
        )
