"""Run requests through an engine on the fake runner."""

from collections.abc import Sequence
from typing import Any

from mindformers_glm.engine.engine_config import EngineConfig
from mindformers_glm.engine.llm_engine import LLMEngine
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from tests.engine.fake_runner import FakeRunner
from tests.engine.letters import LetterTokenizer


def make_engine(
    eos_token_ids: Sequence[int] = (), runner_type: type[FakeRunner] = FakeRunner, **sizes: int
) -> LLMEngine:
    """Return an engine with room for everything, unless `sizes` (of EngineConfig) say less."""
    defaults = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 64,
        "max_model_len": 100,
        "block_size": 4,
        "num_blocks": 200,
        "seed": 0,
    }
    config = EngineConfig(**(defaults | sizes))
    runner = runner_type(block_size=config.block_size)
    runner.allocate_kv_cache(config.num_blocks)
    return LLMEngine(runner, config, LetterTokenizer(), eos_token_ids)


def run_all(engine: LLMEngine, limit: int = 10_000) -> list[RequestOutput]:
    """Step until nothing is left and return every output."""
    outputs = []
    for _ in range(limit):
        if not engine.has_unfinished():
            return outputs
        outputs += engine.step()
    raise AssertionError(f"the engine is not done after {limit} steps")


def generate(
    engine: LLMEngine, prompts: Sequence[list[int]], *, seeds: bool = False, **params: Any
) -> list[RequestOutput]:
    """Return the last output of each prompt, in their order."""
    for index, prompt in enumerate(prompts):
        own_seed = {"seed": index} if seeds else {}
        engine.add_request(str(index), prompt, SamplingParams(**params, **own_seed))
    done = {output.request_id: output for output in run_all(engine) if output.finished}
    return [done[str(index)] for index in range(len(prompts))]
