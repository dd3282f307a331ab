"""The Python API: a checkpoint folder in, answers out."""

from collections.abc import Generator, Iterator, Mapping
from collections.abc import Sequence as Items
from inspect import signature
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from mindformers_glm.backends import ModelBatch
from mindformers_glm.config.device_settings import DeviceSettings
from mindformers_glm.config.environment import launched_rank, packed_cache_folder, quantized_folder
from mindformers_glm.config.num_threads import check_num_threads
from mindformers_glm.config.runner_settings import GIVEN_SETTINGS
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.engine.agreement import check_requests_are_shared
from mindformers_glm.engine.argument_names import (
    OTHER_NAMES_OF_LLM,
    OTHER_NAMES_OF_METHODS,
    refuse_unknown_arguments,
)
from mindformers_glm.engine.constraints import ConstraintCompiler
from mindformers_glm.engine.engine_config import ENGINE_SETTINGS, EngineConfig
from mindformers_glm.engine.llm_arguments import (
    Conversation,
    Prompt,
    ToolChoice,
    check_count,
    check_single_prompt,
    check_types,
    is_list,
    is_single_prompt,
    read_draft_len,
    read_size,
    spread_params,
)
from mindformers_glm.engine.llm_engine import LLMEngine
from mindformers_glm.engine.open_model import open_model
from mindformers_glm.engine.open_requests import OpenRequests
from mindformers_glm.engine.reply_reader import ReplyParsers
from mindformers_glm.engine.request_frontend import RequestFrontend, Tools
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.row_logits import compute_row_logits, iter_row_logits
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.engine.step_times import StepTimes
from mindformers_glm.system.log import silence_other_ranks
from mindformers_glm.tokenizer import GlmTokenizer
from mindformers_glm.tokenizer.chat import NO_OPTIONS, ChatOptions
from mindformers_glm.weights.packed_cache import PackedCacheSettings

_OTHER_NAMES = OTHER_NAMES_OF_METHODS | dict.fromkeys(
    signature(SamplingParams).parameters, "it is an argument of SamplingParams"
)


@refuse_unknown_arguments(
    OTHER_NAMES_OF_LLM, dict.fromkeys(("generate", "stream", "chat"), _OTHER_NAMES)
)
class LLM:
    """A loaded model that answers prompts.

        with LLM("/models/GLM-4-9B-0414") as llm:
            print(llm.generate("请介绍一下北京")[0].text)

    Not thread-safe. Several `stream`s may be read in turns; their requests run together.
    A program that steps the engine itself finds its parts in `frontend` and `engine`.

    Args:
        pretrained_model_dir: a Hugging Face folder as downloaded, or the name of a model that
            `mindformers-glm download` has put into the working directory. A folder without a
            tokenizer takes token ids only.
        params_dtype: type of the weights in memory (float32, bfloat16, float16, or short fp32,
            bf16, fp16); None: as in the checkpoint.
        compute_dtype: type in which products are taken; None: `params_dtype`.
        rotary_dtype: type the RoPE tables are rounded to; None: float32, on Ascend compute_dtype.
        quantization: what the linear layers' weights become while they are loaded: "w8a16",
            "w8a8_dynamic", "w4a16" or "w4a8_dynamic"; None: they stay float.
        quantization_group_size: columns that share a scale of int4 weights (32, 64, 128);
            None: 128.
        kv_cache_dtype: type of cached keys and values: "float16", "float32", "bfloat16", "int8",
            which takes half of float16's bytes, or "auto": int8 where the checkpoint has scales for
            it, else float16, beside float32 products float32.
        max_model_len: most tokens of prompt and answer together; None: the checkpoint's limit, but
            at most 8192.
        max_num_seqs: most requests that run together; None: 32.
        max_num_batched_tokens: most tokens of one step; longer prompts are split. None: 512.
        max_device_memory: cap for weights, KV cache and workspace, bytes or a text such as "59GB"
            (2**30); None: what the machine has.
        block_size: tokens of one KV-cache block; None: 32.
        model_parallel: processes that the model is split over; more than 1 in a script that a
            launcher started as often (scripts/msrun_launcher.sh), where every process calls the
            same methods with the same arguments and gets the same answers.
        seed: draws of requests without their own seed follow from it and from the request's number.
        prompt_lookup_num_tokens: most tokens that a step guesses ahead from what prompt and answer
            hold already; 0: none; None: 11. Answers are the same, repetitive ones come faster.
        prefill_tokens_beside_decode: most tokens of prompts in a step that goes on with answers of
            others, so that a long prompt does not hold these up; as many as there are answers, if
            that is more. 0: prompts fill every step, which is best where nobody watches.
        enable_prefix_caching: requests that begin alike compute the beginning once, also one after
            the other; answers are the same.
        num_threads: threads of the operators, for all models of this process; None: OMP_NUM_THREADS
            where it is set (with model_parallel above 1: to more than 1, which msrun sets), else
            one on each physical core that the process may use, or on its share of them.
        device_target: "CPU" or "Ascend"; None: Ascend where a card and CANN can be used.
        device_options: further settings of the device by MindSpore's names, {"device_id": 1}, say
            (docs/configuration.md, "Device and graph").
        packed_cache: whether what loading makes of the checkpoint is kept in a file for the next
            start: "auto" where that saves much reading (quantized weights), "verify" the same with
            every byte checked before it is used, "on", "off".
        apply_chat_template: whether a text is written as a user's message: True, False, or "auto"
            for True where the checkpoint has a chat template, or is no base model and of a known
            chat format. Token ids are taken as they are.
        tool_call_parser: what finds tool calls in the answers to conversations
            (`tokenizer.replies.TOOL_CALL_PARSERS`); "auto": what fits the checkpoint's chat
            template; "none": nothing.
        reasoning_parser: what tells thoughts from answers there (`REASONING_PARSERS`), likewise.
        chat_template: what writes conversations in place of the checkpoint's own: the name of one
            of its templates, a template's text, or a file.
        chat_template_kwargs: further variables of the template, {"enable_thinking": False}, say.
        add_generation_prompt: whether a conversation ends where an answer begins; None: unless the
            final message is continued.
        continue_final_message: whether answers go on with the last message of a conversation.
    Raises:
        GlmError: the folder, a setting, or the memory does not allow it; in one sentence.
    """

    def __init__(
        self,
        pretrained_model_dir: str | Path,
        *,
        params_dtype: str | None = None,
        compute_dtype: str | None = None,
        rotary_dtype: str | None = None,
        quantization: str | None = None,
        quantization_group_size: int | None = None,
        kv_cache_dtype: str = "auto",
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        max_device_memory: str | int | None = None,
        block_size: int | None = None,
        model_parallel: int = 1,
        seed: int = 0,
        prompt_lookup_num_tokens: int | None = None,
        prefill_tokens_beside_decode: int = 0,
        enable_prefix_caching: bool = True,
        num_threads: int | None = None,
        device_target: str | None = None,
        device_options: Mapping[str, Any] | None = None,
        packed_cache: str = "auto",
        apply_chat_template: bool | Literal["auto"] = "auto",
        tool_call_parser: str = "auto",
        reasoning_parser: str = "auto",
        chat_template: str | Path | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
    ) -> None:
        given = dict(locals())  # the arguments by name; nothing else is named yet
        check_types(seed, apply_chat_template, enable_prefix_caching)
        check_count("prefill_tokens_beside_decode", prefill_tokens_beside_decode)
        check_num_threads(num_threads)
        wanted_parsers = ReplyParsers(tool_call_parser, reasoning_parser)
        options = ChatOptions.given(
            chat_template, chat_template_kwargs, add_generation_prompt, continue_final_message
        )
        tensor_parallel = TensorParallel(model_parallel, launched_rank(model_parallel))
        silence_other_ranks(tensor_parallel.rank)
        given["seed"] = int(seed)
        given["prompt_lookup_num_tokens"] = read_draft_len(prompt_lookup_num_tokens)
        engine_settings = {name: given[name] for name in ENGINE_SETTINGS}
        model = open_model(
            pretrained_model_dir,
            tensor_parallel,
            {name: given[name] for name in GIVEN_SETTINGS},
            engine_settings,
            device_target=device_target,
            device=DeviceSettings.from_options(device_options, read_size(max_device_memory)),
            num_threads=num_threads,
            cache_settings=PackedCacheSettings(packed_cache, packed_cache_folder()),
            chat_template=options.chat_template,
            quantized_folder=quantized_folder(),
        )
        self.config, self.settings = model.config, model.settings
        self.tokenizer: GlmTokenizer = model.tokenizer
        reply_parsers = wanted_parsers.resolve(model.reply_parsers)
        constraints = ConstraintCompiler(self.tokenizer.vocabulary, model.runner.vocab_size)
        self.frontend = RequestFrontend(
            self.tokenizer,
            reply_parsers,
            apply_chat_template,
            options,
            constraints,
            self.settings.max_model_len,
        )
        self._group = model.group
        engine = LLMEngine(
            model.runner,
            EngineConfig.for_runner(self.settings, model.num_blocks, engine_settings),
            self.tokenizer,
            eos_token_ids=(
                *self.config.eos_token_ids,
                *model.defaults.eos_token_ids,
                *self.tokenizer.eos_token_ids,
            ),
            defaults=model.defaults,
            special_token_names=self.tokenizer.special_token_names,
            max_position_embeddings=self.config.max_position_embeddings,
            constraints=constraints,
        )
        self._requests = OpenRequests(self.frontend, engine, self._group)

    def generate(
        self,
        prompts: Prompt | Items[Prompt],
        sampling_params: SamplingParams | Items[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Answer prompts together, in one continuous batch.

        Args:
            prompts: one prompt or several; each a text, token ids or a conversation.
            sampling_params: one for all prompts, or one for each; None: as the checkpoint says.
        Returns:
            One output for each prompt, in their order. A prompt that cannot be run has
            finish_reason "error" and says why in `error`; the others run. Where the prompt was
            written by the chat template, `reply` tells the answer apart.
        Raises:
            PromptError: `prompts` as a whole is none of these.
            ConfigError: sampling_params are of another type, or not as many as prompts.
        """
        wanted: list[Any] = [prompts] if is_single_prompt(prompts) else list(prompts)
        return self._requests.answer_all(wanted, sampling_params)

    def generate_steps(
        self,
        prompts: Items[Prompt],
        sampling_params: SamplingParams | Items[SamplingParams] | None = None,
        *,
        is_text_shown: bool = False,
    ) -> Generator[list[tuple[int, RequestOutput]], None, None]:
        """Answer prompts together and tell after each step what has come of it.

        Args:
            prompts, sampling_params: as for `generate`; always a list of prompts.
            is_text_shown: the caller writes the text to the terminal as it comes, so the progress
                bar leaves when the first answer begins.
        Yields:
            (place of the prompt in the list, output) of each request that got tokens or ended, as
            `stream` would give it; nothing for a step that only read prompts.
        """
        params = spread_params(sampling_params, len(prompts))
        requests = [
            (*asked, None, "auto", NO_OPTIONS) for asked in zip(prompts, params, strict=True)
        ]
        yield from self._requests.run_together(requests, is_text_shown)

    def stream(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | None = None,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        *,
        chat_template: str | Path | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
    ) -> Iterator[RequestOutput]:
        """Answer one prompt; yields an output for each step, the last one has a finish_reason.

        A step gives one token, or several where `prompt_lookup_num_tokens` guessed right.
        `delta_text` is what is new; it can be empty while a character or a stop string is
        incomplete. Leaving the loop early ends the request. `tools` are descriptions of functions
        that the model may call; they need a prompt that the chat template writes, and with
        `tool_choice` "none" the model is not told of them (`chat` says what else it may be). For
        such a prompt `reply` is the answer told apart (thoughts, content, tool calls),
        `delta_reply` its growth.
        The last four are those of `LLM` itself, for this prompt.

        Raises:
            PromptError: several prompts are given.
            ConfigError: sampling_params, tools or an option are something else.
        """
        check_single_prompt(prompt)
        options = ChatOptions.given(
            chat_template, chat_template_kwargs, add_generation_prompt, continue_final_message
        )
        request_id = self._requests.add(prompt, sampling_params, tools, tool_choice, options)
        try:
            self._requests.check_ranks_agree([request_id])
            for outputs in self._requests.collect([request_id]):
                yield from outputs
        finally:
            self._requests.discard([request_id])

    @overload
    def chat(
        self,
        messages: Conversation,
        sampling_params: SamplingParams | None = None,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        *,
        chat_template: str | Path | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        parallel_tool_calls: bool = True,
    ) -> RequestOutput: ...

    @overload
    def chat(
        self,
        messages: Items[Conversation],
        sampling_params: SamplingParams | Items[SamplingParams] | None = None,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        *,
        chat_template: str | Path | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        parallel_tool_calls: bool = True,
    ) -> list[RequestOutput]: ...

    def chat(
        self,
        messages: Conversation | Items[Conversation],
        sampling_params: SamplingParams | Items[SamplingParams] | None = None,
        tools: Tools | None = None,
        tool_choice: ToolChoice = "auto",
        *,
        chat_template: str | Path | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
        parallel_tool_calls: bool = True,
    ) -> RequestOutput | list[RequestOutput]:
        """Answer a conversation, or several together, written by the checkpoint's chat template.

        Args:
            messages: [{"role": "user", "content": "..."}, ...], in OpenAI's form or the family's;
                or a list of such conversations.
            sampling_params: as for `generate`.
            tools: descriptions of functions that the model may call, in each conversation.
            tool_choice: "auto" lets the model decide; "none": it is not told of the tools;
                "required": it calls one or several; {"type": "function", "function": {"name":
                ...}}: it calls this one, once.
            chat_template, chat_template_kwargs, add_generation_prompt, continue_final_message:
                those of `LLM` itself, for these conversations.
            parallel_tool_calls: False: `reply` has one tool call at most.
        Returns:
            One output, or for several conversations a list, in their order. Its `text` is what the
            model wrote, `reply` the same told apart.
        """
        options = ChatOptions.given(
            chat_template, chat_template_kwargs, add_generation_prompt, continue_final_message
        )
        if is_list(messages) and len(messages) > 0 and is_list(messages[0]):
            return self._requests.answer_all(
                messages, sampling_params, tools, tool_choice, options, parallel_tool_calls
            )
        return self._requests.answer_all(
            [messages], sampling_params, tools, tool_choice, options, parallel_tool_calls
        )[0]

    def logits(self, token_ids: Items[int]) -> np.ndarray:
        """Return what the network says after each token: float32 [num_tokens, vocab_size].

        Raises:
            PromptError: no tokens, more than max_model_len, or ids outside the vocabulary.
        """
        with self._requests.one_thread:
            self._check_logits_agree(token_ids)
            return compute_row_logits(self.engine, token_ids)

    def logits_chunks(self, token_ids: Items[int]) -> Generator[np.ndarray, None, None]:
        """Yield what `logits` returns in pieces of at most max_num_batched_tokens rows.

        So the memory of one piece is enough: 512 rows of 151,552 float32 are 310 MB. Until the last
        piece, or the iterator's close(), it holds KV-cache blocks that requests then lack.

        Raises:
            PromptError: as `logits`, with the first piece.
        """
        with self._requests.one_thread:
            self._check_logits_agree(token_ids)
            chunks = iter_row_logits(self.engine, token_ids)
        try:
            while True:
                with self._requests.one_thread:
                    _ = self.engine  # says so where it was closed meanwhile
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                yield chunk
        finally:
            self._requests.one_thread.run_when_free(chunks.close)

    @property
    def group(self) -> ProcessGroup:
        """The ranks that the model is split over."""
        return self._group

    def warm_up(self) -> None:
        """Compile now what the first step would compile, so that it takes no longer than others."""
        with self._requests.one_thread:
            self.engine.runner.execute(ModelBatch.of_no_rows())

    @property
    def times(self) -> StepTimes:
        """Where the time of all steps so far went."""
        return self.engine.times

    @property
    def compile_s(self) -> float:
        """Time in which graphs were compiled, in `warm_up` and in first steps of their kind."""
        return self.engine.runner.compile_s

    @property
    def weights_bytes(self) -> int:
        """Memory of the weights."""
        return self.engine.runner.weights_bytes

    @property
    def kv_cache_bytes(self) -> int:
        """Memory of the KV cache, as far as it will be used."""
        return self.engine.config.num_blocks * self.engine.runner.kv_block_bytes

    def close(self) -> None:
        """Give the memory of weights and KV cache back; the object cannot be used any more."""
        self._requests.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def engine(self) -> LLMEngine:
        """What runs the requests, for programs that add and step themselves.

        Raises:
            GlmError: this LLM is closed.
        """
        return self._requests.engine

    def _check_logits_agree(self, token_ids: Items[int]) -> None:
        asked = token_ids if is_list(token_ids) else [token_ids]
        # The entry tells it from a prompt: ranks that call generate() compute other batches.
        under_way = self.engine.num_tokens_under_way | {"logits": len(asked)}
        check_requests_are_shared(self._group, [(asked, (SamplingParams(), None))], under_way)
