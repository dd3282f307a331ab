"""The network's tokens do not depend on how sequences are batched, chunked or preempted."""

from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.backends import select_backend
from mindformers_glm.config.device_settings import DeviceSettings
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.engine.engine_config import EngineConfig
from mindformers_glm.engine.llm_engine import LLMEngine
from mindformers_glm.engine.sampling_params import SamplingParams
from mindformers_glm.tokenizer import TokenIdsOnly
from mindformers_glm.weights.checkpoint import Checkpoint
from tests.model import hf_oracle

_BLOCK_SIZE = 16
_NUM_TOKENS = 24
# One token; a block exactly full; one token over it; and lengths between.
_LENGTHS = (1, _BLOCK_SIZE, _BLOCK_SIZE + 1, 37)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(2, 515, length).tolist() for length in _LENGTHS]


@pytest.fixture(scope="module")
def expected(tiny: Path, prompts: list[list[int]]) -> list[list[int]]:
    return [hf_oracle.greedy_tokens(tiny, prompt, _NUM_TOKENS) for prompt in prompts]


def _generate(
    folder: Path,
    prompts: list[list[int]],
    num_blocks: int = 64,
    max_num_batched_tokens: int = 128,
    max_num_seqs: int = 4,
    kv_cache_dtype: str = "auto",
) -> tuple[list[list[int]], LLMEngine]:
    checkpoint = Checkpoint.open(folder)
    config = GlmConfig.from_hf(folder)
    sizes = {
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "max_model_len": 128,
        "block_size": _BLOCK_SIZE,
    }
    settings = RunnerSettings.with_defaults(
        "float32", config.max_position_embeddings, kv_cache_dtype=kv_cache_dtype, **sizes
    )
    backend = select_backend("CPU")
    backend.connect(settings.tensor_parallel, DeviceSettings())
    runner = backend.create_runner(config, checkpoint, settings)
    runner.allocate_kv_cache(num_blocks)
    engine = LLMEngine(
        runner,
        EngineConfig(**sizes, num_blocks=num_blocks, seed=0),
        TokenIdsOnly("this test"),
        eos_token_ids=(),
    )
    params = SamplingParams(do_sample=False, max_new_tokens=_NUM_TOKENS)
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), prompt, params)
    tokens: dict[str, list[int]] = {}
    while engine.has_unfinished():
        for output in engine.step():
            if output.finished:
                tokens[output.request_id] = list(output.token_ids)
    return [tokens[str(index)] for index in range(len(prompts))], engine


def test_each_prompt_alone_equals_hugging_face(
    tiny: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    for prompt, tokens in zip(prompts, expected, strict=True):
        assert _generate(tiny, [prompt], max_num_seqs=1)[0] == [tokens]


def test_prompts_together_equal_hugging_face(
    tiny: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    assert _generate(tiny, prompts)[0] == expected


@pytest.mark.parametrize("budget", [5, 16, 17])
def test_chunked_prefill_equals_whole(
    tiny: Path, prompts: list[list[int]], expected: list[list[int]], budget: int
) -> None:
    assert _generate(tiny, prompts, max_num_batched_tokens=budget)[0] == expected


def test_preempted_sequences_equal_those_that_were_not(
    tiny: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    # The four need 2 + 3 + 3 + 4 blocks in the end: with 7, some must give theirs up and redo.
    found, engine = _generate(tiny, prompts, num_blocks=7)
    assert found == expected
    assert engine.scheduler.num_preemptions > 0


def test_preemption_and_chunks_change_no_token_of_an_int8_cache(
    tiny: Path, prompts: list[list[int]]
) -> None:
    alone = [
        _generate(tiny, [prompt], max_num_seqs=1, kv_cache_dtype="int8")[0][0] for prompt in prompts
    ]
    found, engine = _generate(tiny, prompts, num_blocks=7, kv_cache_dtype="int8")
    assert found == alone
    assert engine.scheduler.num_preemptions > 0
    for budget in (5, 17):
        chunks, _ = _generate(tiny, prompts, max_num_batched_tokens=budget, kv_cache_dtype="int8")
        assert chunks == alone
