"""However requests are batched, split or preempted, their tokens are those of running alone."""

import random
from typing import Any

import pytest

from mindformers_glm.engine.sampling_params import SamplingParams
from tests.engine.drive import generate, make_engine, run_all
from tests.engine.fake_runner import answer

# block_size is 4: one token, a block exactly full, one over it, several blocks, ...
LENGTHS = [1, 4, 5, 8, 9, 3, 17, 16]
PROMPTS = [[(7 * n + k) % 50 for k in range(n)] for n in LENGTHS]
SAMPLED = {"do_sample": True, "temperature": 1.3, "top_k": 0, "repetition_penalty": 1.1}


def _alone(**params: Any) -> list[list[int]]:
    return [
        generate(make_engine(), [prompt], **params, seed=index)[0].token_ids
        for index, prompt in enumerate(PROMPTS)
    ]


def _together(sizes: dict[str, int], **params: Any) -> list[list[int]]:
    return [output.token_ids for output in generate(make_engine(**sizes), PROMPTS, **params)]


def test_one_request_gives_what_the_runner_says() -> None:
    assert _together({}, max_new_tokens=12) == [answer(prompt, 12) for prompt in PROMPTS]


@pytest.mark.parametrize(
    "sizes",
    [
        {"max_num_seqs": 1},
        {"max_num_seqs": 3},
        {"max_num_batched_tokens": 1},
        {"max_num_batched_tokens": 5},
        {"num_blocks": 25, "max_num_batched_tokens": 7},
        {"num_blocks": 12},
        {"num_blocks": 8, "max_num_batched_tokens": 3},
        {"block_size": 1, "num_blocks": 60},
        {"block_size": 64, "num_blocks": 9},
    ],
    ids=str,
)
@pytest.mark.parametrize("params", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_batching_chunking_and_preemption_change_nothing(
    sizes: dict[str, int], params: dict[str, Any]
) -> None:
    expected = _alone(max_new_tokens=12, **params)
    engine = make_engine(**sizes)
    outputs = generate(engine, PROMPTS, seeds=True, max_new_tokens=12, **params)
    assert [output.token_ids for output in outputs] == expected
    assert engine.pool.num_free == engine.pool.num_blocks


def test_the_small_pool_above_does_preempt() -> None:
    engine = make_engine(num_blocks=12)
    generate(engine, PROMPTS, max_new_tokens=12)
    assert engine.scheduler.num_preemptions > 0


def test_draws_without_own_seed_depend_on_the_engines_seed_and_the_request_only() -> None:
    def draw(**sizes: int) -> list[list[int]]:
        return _together(sizes, max_new_tokens=8, **SAMPLED)

    assert draw() == draw(max_num_seqs=2, num_blocks=12, max_num_batched_tokens=5)
    assert draw() != draw(seed=1)


def test_equal_prompts_draw_differently() -> None:
    engine = make_engine()
    outputs = generate(engine, [[1, 2, 3]] * 3, max_new_tokens=12, **SAMPLED)
    assert len({tuple(output.token_ids) for output in outputs}) == 3


@pytest.mark.parametrize("seed", range(30))
def test_random_traffic_leaks_nothing_and_changes_no_answer(seed: int) -> None:
    rng = random.Random(seed)
    budget = rng.randint(1, 20)
    sizes = {
        "max_num_seqs": rng.randint(1, 6),
        "max_num_batched_tokens": budget,
        "block_size": rng.choice([1, 3, 4, 8]),
        "max_model_len": 40,
    }
    # Sometimes barely room for one sequence of max_model_len.
    sizes["num_blocks"] = -(-40 // sizes["block_size"]) + rng.randint(0, 30)
    engine = make_engine(eos_token_ids=[0, 1], **sizes)
    expected = {}
    aborted = set()
    outputs = {}
    for number in range(25):
        prompt = [rng.randrange(50) for _ in range(rng.randint(1, 35))]
        count = rng.randint(1, 20)
        engine.add_request(str(number), prompt, SamplingParams(max_new_tokens=count))
        expected[str(number)] = answer(prompt, min(count, 40 - len(prompt)), stop=(0, 1))
        for _ in range(rng.randint(0, 5)):
            for output in engine.step():
                outputs[output.request_id] = output
        if rng.random() < 0.2:
            victim = str(rng.randrange(number + 1))
            last = engine.abort(victim)
            if last is not None:
                assert last.finish_reason == "abort"
                outputs[victim] = last
                aborted.add(victim)
    for output in run_all(engine):
        outputs[output.request_id] = output
    assert max(engine.runner.rows_per_step) <= budget
    assert engine.pool.num_free == engine.pool.num_blocks
    assert outputs.keys() == expected.keys()
    for request_id, output in outputs.items():
        found = output.token_ids
        if request_id in aborted:
            assert found == expected[request_id][: len(found)]
        else:
            assert found == expected[request_id]
            assert output.finish_reason == ("stop" if found[-1] in (0, 1) else "length")
