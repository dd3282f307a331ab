"""The engine on upstream's network: batches, chunks, guesses, cached prefixes, preemption."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.core.errors import UnsupportedError
from tests.conftest import REPO
from tests.model import hf_oracle

MINI = REPO / "mindformers_glm" / "assets" / "glm4-mini"
FLOAT32 = {"params_dtype": "float32", "compute_dtype": "float32"}
ASCEND: dict[str, Any] = {"device_target": "Ascend", "device_options": {"mode": 1}}
PROMPTS = ["请介绍一下北京", "What is 2 + 3?", "请介绍一下北京", "你好"]
GREEDY = SamplingParams(do_sample=False, max_new_tokens=16)


@pytest.fixture(scope="module")
def expected() -> list[list[int]]:
    with LLM(MINI, device_target="CPU", max_model_len=256, **FLOAT32) as llm:
        return [list(output.token_ids) for output in llm.generate(PROMPTS, GREEDY)]


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_num_batched_tokens": 16}, {"max_num_seqs": 2, "prompt_lookup_num_tokens": 0}],
    ids=["together", "in chunks", "two at a time"],
)
def test_answers_are_those_of_the_cpu(
    expected: list[list[int]], settings: dict[str, Any], with_ascend: Counter[str]
) -> None:
    llm = LLM(MINI, max_model_len=256, **ASCEND, **FLOAT32, **settings)
    found = [list(output.token_ids) for output in llm.generate(PROMPTS, GREEDY)]
    assert found == expected
    assert with_ascend["FlashAttentionScore"] > 0
    assert with_ascend["PagedAttention"] > 0
    llm.close()


@pytest.mark.parametrize(
    ("changes", "settings", "named"),
    [
        ({}, {"quantization": "w8a16"}, "quantization w8a16"),
        ({"partial_rotary_factor": 1.0}, {}, "partial_rotary_factor 1.0"),
        ({}, {"params_dtype": "bfloat16", "compute_dtype": "float32"}, "compute_dtype float32"),
    ],
)
def test_what_the_network_cannot_do_is_refused_by_name(
    changes: dict[str, Any],
    settings: dict[str, Any],
    named: str,
    with_ascend: Counter[str],
    tmp_path: Path,
) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, **changes)
    with pytest.raises(UnsupportedError, match=named):
        LLM(folder, **ASCEND, **(FLOAT32 | settings))
