"""Run requests through an engine on the fake runner."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mindformers_glm.engine.engine_config import EngineConfig
from mindformers_glm.engine.llm_engine import LLMEngine
from mindformers_glm.engine.request_output import RequestOutput
from mindformers_glm.engine.sampling_params import SamplingParams
from tests.engine.fake_runner import FakeRunner
from tests.engine.letters import LetterTokenizer


def make_engine(
    eos_token_ids: Sequence[int] = (),
    runner_type: type[FakeRunner] = FakeRunner,
    special_token_names: Mapping[int, str] | None = None,
    **sizes: int,
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
    tokenizer = LetterTokenizer(special_token_names)
    return LLMEngine(
        runner, config, tokenizer, eos_token_ids, special_token_names=special_token_names
    )


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


def run_random_traffic(
    rng: random.Random,
    engine: LLMEngine,
    plain: LLMEngine,
    make_prompt: Callable[[], list[int]],
    sampled: dict[str, Any],
    *,
    num_requests: int,
    max_new_tokens: int,
    after_each: Callable[[], None] = lambda: None,
) -> list[tuple[RequestOutput, RequestOutput]]:
    """Send requests to both engines; abort some in the first one, which steps in between.

    Args:
        sampled: parameters of the half of the requests that is not greedy.
        after_each: called after each request.
    Returns:
        The last outputs of both for each request that was not aborted. Checked already: none is
        lost, no block leaks, an aborted answer is the beginning of the whole one.
    """
    outputs: dict[str, RequestOutput] = {}
    aborted = set()
    for number in range(num_requests):
        request_id, prompt = str(number), make_prompt()
        params = SamplingParams(
            max_new_tokens=rng.randint(1, max_new_tokens),
            **({} if rng.random() < 0.5 else sampled),
        )
        engine.add_request(request_id, prompt, params)
        plain.add_request(request_id, prompt, params)
        for _ in range(rng.randint(0, 5)):
            outputs |= {output.request_id: output for output in engine.step()}
        if rng.random() < 0.2:
            victim = str(rng.randrange(number + 1))
            last = engine.abort(victim)
            if last is not None:
                outputs[victim] = last
                aborted.add(victim)
        after_each()
    outputs |= {output.request_id: output for output in run_all(engine)}
    expected = {output.request_id: output for output in run_all(plain)}
    assert engine.pool.num_free == engine.pool.num_blocks
    assert outputs.keys() == expected.keys()
    for request_id in aborted:
        found = outputs[request_id].token_ids
        assert found == expected[request_id].token_ids[: len(found)]
    return [
        (output, expected[request_id])
        for request_id, output in outputs.items()
        if request_id not in aborted
    ]
