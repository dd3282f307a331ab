"""Taking over the blocks of a common beginning changes not one bit of the logits."""

import json
from pathlib import Path

import numpy as np
import pytest

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.engine.request_output import RequestOutput
from tests.conftest import MINI
from tests.model import hf_oracle

_GREEDY = SamplingParams(do_sample=False, max_new_tokens=12, ignore_eos=True)
_BLOCK_SIZE = 16


class _Recorded:
    """A loaded model that keeps the logits each answer was sampled from."""

    def __init__(self, folder: Path, **settings: object) -> None:
        sizes = {"max_model_len": 256, "block_size": _BLOCK_SIZE, "max_num_seqs": 8}
        self.llm = LLM(folder, **(sizes | settings))  # type: ignore[arg-type]
        self.num_rows = 0
        self.logits: list[np.ndarray] = []
        runner = self.llm.engine.runner
        execute = runner.execute

        def recorded(batch: ModelBatch) -> np.ndarray:
            logits = execute(batch)
            self.num_rows += len(batch.token_ids)
            self.logits += [row.copy() for row in logits]
            return logits

        runner.execute = recorded  # type: ignore[method-assign]

    def ask(self, prompts: list[list[int]]) -> tuple[list[RequestOutput], list[np.ndarray]]:
        """Answer the prompts one by one; the second are the logits of all their tokens."""
        self.logits = []
        outputs = [self.llm.generate([prompt], _GREEDY)[0] for prompt in prompts]
        return outputs, self.logits


def _prompts(vocab_size: int) -> list[list[int]]:
    """One beginning, in all lengths around full blocks, twice, and with other ends."""
    text = np.random.default_rng(2).integers(2, vocab_size, 80).tolist()
    lengths = (1, 15, 16, 17, 31, 32, 33, 48, 49, 64, 65, 80, 80, 33)
    return [text[:n] for n in lengths] + [[*text[:n], 7, 8, 9] for n in (16, 30, 48)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_are_bitwise_those_without(tiny: Path, dtype: str) -> None:
    prompts = _prompts(515)
    settings = {"params_dtype": dtype, "prompt_lookup_num_tokens": 0}
    plain = _Recorded(tiny, enable_prefix_caching=False, **settings)
    shared = _Recorded(tiny, **settings)
    (expected, expected_logits), (found, found_logits) = plain.ask(prompts), shared.ask(prompts)
    assert [output.token_ids for output in found] == [output.token_ids for output in expected]
    np.testing.assert_array_equal(found_logits, expected_logits)
    full = [(len(prompt) - 1) // _BLOCK_SIZE * _BLOCK_SIZE for prompt in prompts]
    assert [output.num_cached_tokens for output in found][-4:] == [*full[-4:-3], 16, 16, 48]
    assert shared.num_rows < 0.6 * plain.num_rows


@pytest.fixture(scope="module")
def expected(tiny: Path) -> list[list[int]]:
    """What Hugging Face answers to `_prompts(515)[5:]`."""
    return [hf_oracle.greedy_tokens(tiny, prompt, 12) for prompt in _prompts(515)[5:]]


def test_tokens_together_in_few_blocks_equal_hugging_face(
    tiny: Path, expected: list[list[int]]
) -> None:
    prompts = _prompts(515)[5:]
    for sizes in (
        {},
        {"max_num_batched_tokens": 20},
        {"max_num_seqs": 3, "max_model_len": 96},  # 18 blocks: old content has to make place
        {"prompt_lookup_num_tokens": 0, "max_num_batched_tokens": 64},
    ):
        llm = LLM(tiny, **({"block_size": _BLOCK_SIZE, "max_model_len": 128} | sizes))
        for _ in range(2):
            outputs = llm.generate(prompts, _GREEDY)
            assert [output.token_ids for output in outputs] == expected
        assert sum(output.num_cached_tokens for output in outputs) > 300


def test_preempted_sequences_equal_hugging_face(tiny: Path, expected: list[list[int]]) -> None:
    prompts = _prompts(515)[5:13]
    llm = LLM(tiny, block_size=_BLOCK_SIZE, max_model_len=96, max_num_seqs=2)
    engine = llm.engine
    held = engine.pool.allocate(engine.pool.num_free - 7)  # room for little more than one
    outputs = llm.generate([prompt[::-1] for prompt in prompts] + prompts, _GREEDY)
    engine.pool.free(held)
    assert [output.token_ids for output in outputs[8:]] == expected[:8]
    assert engine.scheduler.num_preemptions > 0


def test_isas_are_each_bitwise_equal_with_and_without(tiny: Path, isa: str) -> None:
    prompts = _prompts(515)[-6:]
    settings = {"params_dtype": "bfloat16", "max_num_batched_tokens": 40}
    plain = _Recorded(tiny, enable_prefix_caching=False, **settings)
    shared = _Recorded(tiny, **settings)
    np.testing.assert_array_equal(shared.ask(prompts)[1], plain.ask(prompts)[1])
    assert shared.num_rows < plain.num_rows


def test_network_generate_knows_that_weights_may_have_changed(tiny: Path, tmp_path: Path) -> None:
    from mindformers_glm import Glm4ForCausalLM

    prompt = _prompts(515)[9]
    other = hf_oracle.save_random_checkpoint(tmp_path, seed=5)
    network = Glm4ForCausalLM.from_pretrained(str(tiny), max_model_len=128, block_size=_BLOCK_SIZE)
    for folder in (tiny, other):
        network.load_weights(folder)
        (found,) = network.generate(prompt, do_sample=False, max_new_tokens=8, ignore_eos=True)
        assert found[len(prompt) :].tolist() == hf_oracle.greedy_tokens(folder, prompt, 8)


@pytest.fixture(scope="module")
def conversations() -> list[list[dict[str, str]]]:
    lines = (MINI / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    system = {"role": "system", "content": "You are a helpful assistant. " * 12}
    return [[system, *json.loads(line)["messages"]] for line in lines[:40:4]]


@pytest.mark.weights
def test_a_shared_system_prompt_is_computed_once(
    conversations: list[list[dict[str, str]]],
) -> None:
    params = SamplingParams(do_sample=False, max_new_tokens=40)
    plain = _Recorded(MINI, max_model_len=512, enable_prefix_caching=False)
    shared = _Recorded(MINI, max_model_len=512)
    expected, found = (model.llm.generate(conversations, params) for model in (plain, shared))
    assert [output.token_ids for output in found] == [output.token_ids for output in expected]
    assert [output.text for output in found] == [output.text for output in expected]
    shortest = min(len(output.prompt_token_ids) for output in found)
    num_cached = [output.num_cached_tokens for output in found]
    assert num_cached[0] == 0
    assert min(num_cached[1:]) > shortest // 2
    assert plain.num_rows - shared.num_rows >= sum(num_cached)


@pytest.mark.weights
def test_the_next_turn_of_a_chat_computes_the_new_tokens_only() -> None:
    messages = [{"role": "user", "content": "请介绍一下北京"}]
    shared, plain = (
        LLM(MINI, max_model_len=512, block_size=_BLOCK_SIZE, enable_prefix_caching=is_enabled)
        for is_enabled in (True, False)
    )
    params = SamplingParams(do_sample=False, max_new_tokens=64)
    for question in ("1+1=?", "谢谢", "Tell me more."):
        answers = [llm.chat(messages, params) for llm in (shared, plain)]
        assert answers[0].token_ids == answers[1].token_ids
        messages += [
            {"role": "assistant", "content": answers[0].text},
            {"role": "user", "content": question},
        ]
    prompt = answers[0].prompt_token_ids
    assert answers[0].num_cached_tokens > len(prompt) // 2
