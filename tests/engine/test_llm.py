"""The Python API over a real folder (config, headers, tokenizer) and the fake runner."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import (
    CheckpointError,
    ConfigError,
    GlmError,
    MemoryBudgetError,
    PromptError,
)
from mindformers_glm.core.process_group import ProcessGroup
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.engine import llm_engine as llm_engine_module
from mindformers_glm.engine import open_model as open_model_module
from mindformers_glm.engine.llm import LLM
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.tokenizer.replies import ParsedReply, ToolCall
from tests.e2e.random_checkpoint import CONTEXT, write_checkpoint
from tests.engine.fake_runner import FakeRunner, answer

VOCAB = 257
SHORT = SamplingParams(max_new_tokens=6)


class _Backend:
    """Counts loads; each gives a fake runner of the size that was asked for."""

    def __init__(self) -> None:
        self.settings: list[RunnerSettings] = []
        self.num_threads: list[int | None] = []
        self.gather: Callable[[np.ndarray], np.ndarray] | None = None

    def connect(self, tensor_parallel: TensorParallel) -> ProcessGroup:
        if self.gather is not None:  # what another rank answers
            return ProcessGroup(TensorParallel(2, 0), self.gather)
        return ProcessGroup(tensor_parallel)

    def set_num_threads(self, count: int | None) -> None:
        self.num_threads.append(count)

    def create_runner(
        self, config: Any, checkpoint: Any, settings: RunnerSettings, packed_cache: Any
    ) -> FakeRunner:
        self.settings.append(settings)
        return FakeRunner(config.vocab_size, settings.block_size)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> _Backend:
    backend = _Backend()
    monkeypatch.setattr(open_model_module, "select_backend", lambda device_target: backend)
    return backend


@pytest.fixture(scope="module")
def _written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def folder(_written: Path, tmp_path: Path, backend: _Backend) -> Path:
    return Path(shutil.copytree(_written, tmp_path / "checkpoint"))


@pytest.fixture
def edit(folder: Path) -> Callable[..., None]:
    """Change entries of a JSON file of the folder, or write a new one."""

    def edit(name: str, **entries: Any) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(content | entries))

    return edit


def _ids(text: str, llm: LLM) -> list[int]:
    return llm.tokenizer.encode(text)


def test_one_prompt_gives_a_list_of_one(folder: Path) -> None:
    llm = LLM(folder)
    (output,) = llm.generate("abc", SHORT)
    assert output.prompt_token_ids == _ids("abc", llm)
    assert output.token_ids == answer(_ids("abc", llm), 6, VOCAB, stop=(256,))
    assert output.text == llm.tokenizer.decode(output.token_ids)


def test_prompts_keep_their_order_and_run_as_alone(folder: Path) -> None:
    prompts = ["a" * n for n in (1, 30, 4, 33, 32)]
    llm = LLM(folder, max_num_seqs=2, max_num_batched_tokens=8)
    together = llm.generate(prompts, SHORT)
    alone = [LLM(folder).generate(prompt, SHORT)[0] for prompt in prompts]
    assert [output.token_ids for output in together] == [output.token_ids for output in alone]


def test_token_ids_are_taken_as_they_are(folder: Path) -> None:
    llm = LLM(folder)
    assert llm.generate([5, 6], SHORT)[0].prompt_token_ids == [5, 6]
    assert [o.prompt_token_ids for o in llm.generate([[5], [6, 7]], SHORT)] == [[5], [6, 7]]


def test_arrays_of_token_ids_are_prompts(folder: Path) -> None:
    outputs = LLM(folder).generate(np.array([[5, 6], [7, 8]]), SHORT)  # type: ignore[arg-type]
    assert [output.prompt_token_ids for output in outputs] == [[5, 6], [7, 8]]


@pytest.mark.parametrize("prompt", [None, 1.5, {1, 2}, b"abc"])
def test_a_prompt_of_another_type_is_refused(folder: Path, prompt: Any) -> None:
    bad, good = LLM(folder).generate([prompt, "a"], SHORT)
    assert "A prompt must be a text, token ids or messages" in (bad.error or "")
    assert good.error is None


def test_no_prompts_no_outputs(folder: Path) -> None:
    assert LLM(folder).generate([]) == []


def test_a_bad_prompt_keeps_its_place_and_the_others_run(folder: Path) -> None:
    outputs = LLM(folder).generate(["a", "b" * CONTEXT, "", "c"], SHORT)
    assert [output.finish_reason == "error" for output in outputs] == [False, True, True, False]
    assert "The prompt has 64 tokens and the limit is max_model_len=64" in (outputs[1].error or "")
    assert "The prompt is empty" in (outputs[2].error or "")
    assert outputs[1].text == ""


def test_each_prompt_can_have_its_own_params(folder: Path) -> None:
    params = [SamplingParams(max_new_tokens=count) for count in (1, 3)]
    outputs = LLM(folder).generate(["a", "b"], params)
    assert [len(output.token_ids) for output in outputs] == [1, 3]
    with pytest.raises(ConfigError, match="2 sampling_params were given for 3 prompts"):
        LLM(folder).generate(["a", "b", "c"], params)


def test_a_run_can_be_repeated(folder: Path) -> None:
    params = SamplingParams(temperature=2.0, max_new_tokens=8)

    def run(seed: int) -> list[list[int]]:
        return [output.token_ids for output in LLM(folder, seed=seed).generate(["a", "a"], params)]

    assert run(0) == run(0)
    assert run(0) != run(1)


def test_generation_config_is_respected(folder: Path, edit: Callable[..., None]) -> None:
    edit("generation_config.json", max_new_tokens=2)
    llm = LLM(folder)
    assert len(llm.generate("a")[0].token_ids) == 2
    assert len(llm.generate("a", SHORT)[0].token_ids) == 6


def test_end_of_text_is_the_union_of_what_three_files_say(
    folder: Path, edit: Callable[..., None]
) -> None:
    llm = LLM(folder)
    first, second, third = (answer(_ids(text, llm), 1, VOCAB)[0] for text in "abc")
    edit("config.json", eos_token_id=first)
    edit("generation_config.json", eos_token_id=[second])
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json"))
    edit("tokenizer_config.json", eos_token=vocabulary.id_to_token(third))
    outputs = LLM(folder).generate(["a", "b", "c"], SHORT)
    assert [output.finish_reason for output in outputs] == ["stop"] * 3
    assert [output.token_ids for output in outputs] == [[first], [second], [third]]


def test_512_new_tokens_are_noted_once(
    folder: Path, edit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    llm = LLM(folder)
    llm.generate("a", SHORT)
    assert capsys.readouterr().err == ""
    llm.generate(["a", "b"])
    llm.generate("c")
    assert capsys.readouterr().err.count("answers end after 512 tokens") == 1


def test_a_stream_adds_up_to_the_answer(folder: Path) -> None:
    llm = LLM(folder)
    outputs = list(llm.stream("abc", SHORT))
    (whole,) = llm.generate("abc", SHORT)
    assert "".join(output.delta_text for output in outputs) == outputs[-1].text == whole.text
    assert outputs[-1].finish_reason == whole.finish_reason
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]


def test_streams_can_be_read_in_turns(folder: Path) -> None:
    llm = LLM(folder)
    alone = [list(llm.stream(text, SHORT)) for text in ("ab", "cde")]
    first, second = llm.stream("ab", SHORT), llm.stream("cde", SHORT)
    turns: list[list[Any]] = [[next(first), next(first)], []]
    turns[1] += [next(second)]
    whole = llm.generate("ab", SHORT)  # steps the other two as well
    turns[1] += list(second)
    turns[0] += list(first)
    for found, expected in zip(turns, alone, strict=True):
        assert [output.token_ids for output in found] == [o.token_ids for o in expected]
    assert whole[0].token_ids == alone[0][-1].token_ids


def test_leaving_a_stream_ends_its_request(folder: Path) -> None:
    llm = LLM(folder)
    stream = llm.stream("abc", SHORT)
    next(stream)
    stream.close()
    assert not llm.engine.has_unfinished()
    assert llm.engine.pool.num_free == llm.engine.pool.num_blocks


def test_a_bad_prompt_streams_its_error(folder: Path) -> None:
    (output,) = LLM(folder).stream("", SHORT)
    assert (output.finish_reason, output.delta_text) == ("error", "")


def test_an_interrupted_run_leaves_nothing_behind(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(folder)
    expected = llm.generate("abc", SHORT)[0].token_ids

    def interrupt(batch: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.runner, "execute", interrupt)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["abc", "de"], SHORT)
    assert not llm.engine.has_unfinished()
    assert llm.generate("abc", SHORT)[0].token_ids == expected


def test_chat_writes_the_conversation_by_the_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{{ tools | length if tools }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% endfor %}>"
    )
    llm = LLM(folder)
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    assert llm.chat(messages, SHORT).prompt_token_ids == _ids("[user]x[assistant]y>", llm)
    tools = [{"name": "f"}]
    assert llm.chat(messages, SHORT, tools).prompt_token_ids == _ids("1[user]x[assistant]y>", llm)
    assert llm.generate("x", SHORT)[0].prompt_token_ids == _ids("[user]x>", llm)
    assert llm.generate([messages, "x"], SHORT)[0].prompt_token_ids[:6] == _ids("[user]", llm)
    raw = LLM(folder, apply_chat_template=False)
    assert raw.generate("x", SHORT)[0].prompt_token_ids == _ids("x", llm)


def test_logits_are_those_of_every_row_whatever_the_chunks(folder: Path) -> None:
    token_ids = list(range(50))
    runner = FakeRunner(VOCAB)
    expected = np.array([runner._hash(np.arange(n + 1)) for n in range(50)], np.float32)
    for budget in (512, 7, 50):
        llm = LLM(folder, max_num_batched_tokens=budget)
        found = llm.logits(token_ids)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
        assert llm.engine.pool.num_free == llm.engine.pool.num_blocks


def test_logits_do_not_disturb_a_stream(folder: Path) -> None:
    llm = LLM(folder)
    expected = list(llm.stream("abc", SHORT))[-1].token_ids
    stream = llm.stream("abc", SHORT)
    next(stream)
    llm.logits([1, 2, 3])
    assert list(stream)[-1].token_ids == expected


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [([], "empty"), ([VOCAB], "outside the vocabulary"), ([1] * (CONTEXT + 1), "65 tokens")],
)
def test_logits_of_bad_tokens_are_refused(folder: Path, token_ids: list[int], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        LLM(folder).logits(token_ids)


def test_logits_of_a_full_context_are_possible(folder: Path) -> None:
    assert LLM(folder).logits([1] * CONTEXT).shape == (CONTEXT, VOCAB)


def test_settings_reach_the_runner(folder: Path, backend: _Backend) -> None:
    LLM(folder, max_model_len=40, max_num_seqs=3, block_size=16, params_dtype="bfloat16")
    assert backend.settings == [
        RunnerSettings(
            params_dtype="bfloat16",
            compute_dtype="bfloat16",
            rotary_dtype="bfloat16",
            max_num_seqs=3,
            max_num_batched_tokens=512,
            max_model_len=40,
            block_size=16,
        )
    ]


@pytest.mark.parametrize(("given", "expected"), [(None, 11), (0, 0), (12, 12)])
def test_the_draft_length_reaches_the_engine(
    folder: Path, given: int | None, expected: int
) -> None:
    llm = LLM(folder, prompt_lookup_num_tokens=given)
    assert llm.engine.config.prompt_lookup_num_tokens == expected


def test_the_number_of_threads_reaches_the_backend(folder: Path, backend: _Backend) -> None:
    for count in (1, None):
        LLM(folder, num_threads=count)
    assert backend.num_threads == [1, None]


@pytest.mark.parametrize("is_enabled", [True, False])
def test_prefix_caching_can_be_switched_off(folder: Path, is_enabled: bool) -> None:
    llm = LLM(folder, enable_prefix_caching=is_enabled, block_size=4)
    outputs = llm.generate(["abcdefgh", "abcdefghij"], SHORT)
    assert [output.num_cached_tokens for output in outputs] == [0, 8 if is_enabled else 0]


@pytest.mark.parametrize("wrong", [-1, 1.5, "7", True])
def test_a_wrong_draft_length_fails_before_loading(
    folder: Path, backend: _Backend, wrong: Any
) -> None:
    with pytest.raises(ConfigError, match="prompt_lookup_num_tokens must be a whole number"):
        LLM(folder, prompt_lookup_num_tokens=wrong)
    assert backend.settings == []


def test_a_length_beyond_the_checkpoints_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_model_len=65 .*max_position_embeddings=64"):
        LLM(folder, max_model_len=65)


def test_too_small_a_cap_fails_before_loading(folder: Path, backend: _Backend) -> None:
    with pytest.raises(MemoryBudgetError, match="but max_device_memory allows 10 KB"):
        LLM(folder, max_device_memory="10KB")
    assert backend.settings == []


def test_the_cap_limits_the_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeRunner, "__init__", _init_with_large_blocks)
    llm = LLM(folder, max_device_memory="64MB", max_num_seqs=32)
    assert llm.engine.pool.num_blocks == 64


def _init_with_large_blocks(self: FakeRunner, vocab_size: int, block_size: int) -> None:
    self.vocab_size, self.block_size = vocab_size, block_size
    self.weights_bytes = self.mapped_weight_bytes = self.workspace_bytes = 0
    self.kv_block_bytes = 2**20
    self.rows_per_step = []


@pytest.mark.parametrize("size", ["59", "0GB", "much", "-1GB", -1, 0, 2.5, True])
def test_a_size_that_is_none_is_refused(folder: Path, size: Any) -> None:
    with pytest.raises(ConfigError, match="max_device_memory must be a size"):
        LLM(folder, max_device_memory=size)


def test_a_tokenizer_of_another_model_is_refused(folder: Path, backend: _Backend) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 300, "content": "<far>"})
    content["model"]["vocab"]["<far>"] = 300
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="token ids up to 300, the network only vocab_size"):
        LLM(folder)
    assert backend.settings == []


def test_wrong_tensors_are_found_before_loading(
    folder: Path, edit: Callable[..., None], backend: _Backend
) -> None:
    edit("config.json", num_hidden_layers=3)
    with pytest.raises(CheckpointError):
        LLM(folder)
    assert backend.settings == []


def test_a_closed_llm_says_so(folder: Path) -> None:
    with LLM(folder) as llm:
        llm.generate("a", SHORT)
        stream = llm.stream("a", SHORT)
        next(stream)
    with pytest.raises(GlmError, match="This LLM is closed"):
        llm.generate("a", SHORT)
    with pytest.raises(GlmError, match="This LLM is closed"):
        next(stream)


@pytest.mark.parametrize("folder_name", [5, None, b"/models"])
def test_a_folder_that_is_no_path_is_refused(backend: _Backend, folder_name: Any) -> None:
    with pytest.raises(ConfigError, match="pretrained_model_dir must be the path of"):
        LLM(folder_name)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_num_seqs": "3"}, "max_num_seqs must be a whole number, got '3'"),
        ({"max_num_seqs": 2.5}, "max_num_seqs must be a whole number, got 2.5"),
        ({"seed": "a"}, "seed must be a whole number of at least 0, got 'a'"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"num_threads": 0}, "num_threads must be a whole number from 1 to"),
        ({"num_threads": 10_000}, "num_threads must be a whole number from 1 to"),
        ({"enable_prefix_caching": 1}, "enable_prefix_caching must be True or False, got 1"),
        ({"quantization": "int8"}, "quantization must be one of w8a16, .*, got 'int8'"),
        ({"quantization_group_size": 64}, "quantization is not set"),
        ({"apply_chat_template": "maybe"}, "must be True, False or \"auto\", got 'maybe'"),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused_before_loading(
    folder: Path, backend: _Backend, setting: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM(folder, **setting)
    assert backend.settings == []


def test_types_have_the_short_names_of_the_command_line(folder: Path, backend: _Backend) -> None:
    LLM(folder, params_dtype="bf16")
    assert backend.settings[0].params_dtype == "bfloat16"


def test_quantization_reaches_the_runner(folder: Path, backend: _Backend) -> None:
    LLM(folder, quantization="w4a16", quantization_group_size=64)
    settings = backend.settings[0]
    assert (settings.quantization, settings.quantization_group_size) == ("w4a16", 64)


@pytest.mark.parametrize("prompts", [None, 5, {"a"}, (text for text in "ab"), b"abc"])
def test_prompts_that_are_no_list_are_refused(folder: Path, prompts: Any) -> None:
    with pytest.raises(PromptError, match=r"generate\(\) takes a text, token ids, messages"):
        LLM(folder).generate(prompts)


@pytest.mark.parametrize("params", [{"temperature": 1}, [{"temperature": 1}], 5])
def test_sampling_params_of_another_type_are_refused(folder: Path, params: Any) -> None:
    with pytest.raises(ConfigError, match="sampling_params must be SamplingParams"):
        LLM(folder).generate(["a"], params)


def test_tools_make_a_text_a_users_message(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{{ tools | length if tools }}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% endfor %}>"
    )
    tools = [{"name": "f"}]
    llm = LLM(folder)
    outputs = list(llm.stream("x", SHORT, tools))
    assert outputs[0].prompt_token_ids == _ids("1[user]x>", llm)
    (as_ids,) = llm.stream([5], SHORT, tools)
    assert "tools are written by the chat template" in (as_ids.error or "")
    (as_text,) = LLM(folder, apply_chat_template=False).stream("x", SHORT, tools)
    assert "tools are written by the chat template" in (as_text.error or "")


def test_logits_of_no_list_are_refused(folder: Path) -> None:
    with pytest.raises(PromptError, match="Token ids must be a list of whole numbers, got a None"):
        LLM(folder).logits(None)  # type: ignore[arg-type]


_TOOL_TEMPLATE = (
    "{{ tools | length if tools }}{% for m in messages %}[{{ m.role }}]{{ m.metadata }}"
    "{{ m.content }}{% endfor %}>"
)


def _write_answer(monkeypatch: pytest.MonkeyPatch, llm: LLM, text: str) -> None:
    """Make the engine write this text, letter by letter."""
    token_ids = iter(_ids(text, llm))
    monkeypatch.setattr(llm_engine_module, "sample_token", lambda logits, sequence: next(token_ids))


def test_the_answer_to_a_conversation_is_told_apart(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "chat_template.jinja").write_text(_TOOL_TEMPLATE)
    llm = LLM(folder, prompt_lookup_num_tokens=0)
    text = 'ab\nf\n{"x": 1}'
    params = SamplingParams(max_new_tokens=len(text))
    tools = [{"type": "function", "function": {"name": "f"}}]
    expected = ParsedReply("ab\n", tool_calls=(ToolCall("f", '{"x": 1}'),))
    _write_answer(monkeypatch, llm, text)
    output = llm.chat([{"role": "user", "content": "x"}], params, tools)
    assert (output.text, output.reply) == (text, expected)

    _write_answer(monkeypatch, llm, text)
    outputs = list(llm.stream("x", params, tools))
    deltas = [output.delta_reply or ParsedReply() for output in outputs]
    assert sum(deltas, ParsedReply()) == outputs[-1].reply == expected
    assert [delta.content for delta in deltas[:4]] == ["a", "b", "\n", ""]

    _write_answer(monkeypatch, llm, text)
    in_message = [{"role": "system", "content": "", "tools": tools}]
    assert llm.generate(in_message, params)[0].reply == expected

    _write_answer(monkeypatch, llm, text)
    assert llm.generate("x", params)[0].reply == ParsedReply(text)  # no tools were offered

    _write_answer(monkeypatch, llm, text)
    assert llm.generate([1, 2], params)[0].reply is None  # nobody knows what the prompt is
    assert not llm._requests


def test_thoughts_that_the_prompt_opened_are_told_apart(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{{ messages[0].content.split('</think>')[-1] }}<|endoftext|><think>"
    (folder / "chat_template.jinja").write_text(template)
    llm = LLM(folder, prompt_lookup_num_tokens=0)
    _write_answer(monkeypatch, llm, "a</think>b")
    output = llm.chat([{"role": "user", "content": "x"}], SamplingParams(max_new_tokens=10))
    assert output.reply == ParsedReply("b", "a")

    llm = LLM(folder, prompt_lookup_num_tokens=0, reasoning_parser="none")
    _write_answer(monkeypatch, llm, "a</think>b")
    output = llm.chat([{"role": "user", "content": "x"}], SamplingParams(max_new_tokens=10))
    assert output.reply == ParsedReply("a</think>b")


def test_messages_in_openais_form_fit_a_template_of_the_family(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(_TOOL_TEMPLATE)
    llm = LLM(folder)
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "r"}]},
    ]
    found = llm.chat(messages, SHORT).prompt_token_ids
    assert found == _ids('[assistant]f{"a":1}[observation]r>', llm)


@pytest.mark.parametrize("name", ["tool_call_parser", "reasoning_parser"])
def test_unknown_parsers_are_refused_before_loading(
    folder: Path, backend: _Backend, name: str
) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be one of none, .*, got 'x'"):
        LLM(folder, **{name: "x"})
    assert backend.settings == []


@pytest.mark.parametrize("wrong", [0, -1, True, "2", 2.0])
def test_a_model_parallel_that_is_no_number_of_processes_is_refused(
    folder: Path, wrong: Any
) -> None:
    with pytest.raises(ConfigError, match="model_parallel must be a whole number of at least 1"):
        LLM(folder, device_target="CPU", model_parallel=wrong)


def test_a_split_model_needs_a_launcher(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model_parallel 2 needs 2 processes.*msrun_launcher"):
        LLM(folder, device_target="CPU", model_parallel=2)


class _OtherRank:
    """Answers what this rank says, or something else."""

    def __init__(self) -> None:
        self.is_different = False
        self.num_gathers = 0
        self.last: list[int] = []

    def gather(self, values: np.ndarray) -> np.ndarray:
        self.num_gathers += 1
        self.last = values.tolist()
        return np.stack([values, values + self.is_different])


@pytest.fixture
def other_rank(backend: _Backend) -> _OtherRank:
    rank = _OtherRank()
    backend.gather = rank.gather
    return rank


def test_ranks_that_differ_are_told_before_loading(
    folder: Path, backend: _Backend, other_rank: _OtherRank
) -> None:
    other_rank.is_different = True
    with pytest.raises(ConfigError, match=r"rank 1 has other .*weights.*seed.* than rank 0"):
        LLM(folder)
    assert backend.settings == []


def _calls(llm: LLM) -> dict[str, Callable[[], Any]]:
    return {
        "generate": lambda: llm.generate(["abc", "de", [5, 6], ""], SHORT),
        "stream": lambda: list(llm.stream("abc", SHORT)),
        "logits": lambda: llm.logits([5, 6]),
    }


@pytest.mark.parametrize("call", ["generate", "stream", "logits"])
def test_ranks_compare_once_a_call_and_never_in_a_step(
    folder: Path, other_rank: _OtherRank, call: str
) -> None:
    llm = LLM(folder)
    other_rank.num_gathers = 0
    _calls(llm)[call]()
    assert other_rank.num_gathers == 1
    assert not llm._requests


@pytest.mark.parametrize("call", ["generate", "stream", "logits"])
def test_ranks_that_are_asked_different_things_are_told_before_the_first_step(
    folder: Path, other_rank: _OtherRank, call: str
) -> None:
    llm = LLM(folder)
    other_rank.is_different = True
    with pytest.raises(ConfigError, match=r"rank 1 has other prompts.*than rank 0"):
        _calls(llm)[call]()
    assert llm.engine.runner.rows_per_step == []
    assert not llm.engine.has_unfinished()
    other_rank.is_different = False
    assert llm.generate("abc", SHORT)[0].finish_reason == "length"


def test_what_ranks_compare_depends_on_streams_under_way_alone(
    folder: Path, other_rank: _OtherRank
) -> None:
    llm = LLM(folder)
    llm.generate("abc", SHORT)
    idle = other_rank.last
    stream = llm.stream("x", SHORT)
    next(stream)
    llm.generate("abc", SHORT)
    assert [mine == other for mine, other in zip(idle, other_rank.last, strict=True)] == [
        True,
        True,
        False,
    ]
    stream.close()
    llm.generate("abc", SHORT)
    assert other_rank.last == idle
