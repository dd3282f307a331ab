"""The engine on upstream's network has Hugging Face's greedy tokens, however requests run."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.backends.ascend import runner as runner_module
from mindformers_glm.backends.ascend.footprint import count_memory
from mindformers_glm.backends.ascend.step_inputs import UpstreamStep, make_upstream_step
from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import UnsupportedError
from mindformers_glm.engine.prompt_lookup import PromptLookup
from tests.ascend_contract.steps import DIALECTS
from tests.conftest import relative_error
from tests.model import hf_oracle
from tests.model.dialects import save_dialect

FLOAT32 = {"params_dtype": "float32", "compute_dtype": "float32"}
ASCEND: dict[str, Any] = {"device_target": "Ascend", "device_options": {"mode": 1}}
SIZES = {"block_size": 4, "max_model_len": 36, "max_num_batched_tokens": 14, "max_num_seqs": 4}
# The five need 3 + 4 + 6 + 9 + 9 blocks in the end: some give theirs up and redo.
NUM_BLOCKS = 10
NUM_TOKENS = 10
GREEDY = SamplingParams(do_sample=False, max_new_tokens=NUM_TOKENS, ignore_eos=True)


def _prompts() -> list[list[int]]:
    rng = np.random.default_rng(3)
    words = [rng.integers(2, 515, length).tolist() for length in (1, 5, 12, 23)]
    return [*words, words[3] + [7]]  # the last: a beginning that is known


def _kind_of(step: UpstreamStep) -> str:
    is_first, is_one = step.context_lens_tensor == 0, step.q_seq_lens == 1
    if step.is_prefill:
        return "prompts"
    if is_one.all():
        return "answers"
    if len(step.q_seq_lens) == 1:
        return "a chunk"
    return "chunks beside answers" if (is_one & ~is_first).any() else "others"


def _guesser(texts: list[list[int]]) -> Callable[..., list[int]]:
    """PromptLookup.propose that knows two tokens of a text now and then; a third is wrong."""

    def propose(lookup: PromptLookup, token_ids: np.ndarray, limit: int) -> list[int]:
        begun = token_ids.tolist()
        rest = next(text[len(begun) :] for text in texts if text[: len(begun)] == begun)
        return [*rest[:2], 2][:limit] if rest and len(begun) % 3 == 0 else []

    return propose


class _Watched:
    """An LLM on the references with few KV blocks, and the kinds of its steps."""

    def __init__(self, folder: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kinds: Counter[str] = Counter()

        def watched(batch: ModelBatch, compute_dtype: str) -> UpstreamStep:
            step = make_upstream_step(batch, compute_dtype)
            self.kinds[_kind_of(step)] += 1
            return step

        monkeypatch.setattr(runner_module, "make_upstream_step", watched)
        types = {"params_dtype": dtype, "compute_dtype": dtype}
        settings = RunnerSettings.with_defaults(dtype, 512, **types, **SIZES)
        need = count_memory(GlmConfig.from_hf(folder), settings)
        memory = need.weights_bytes + need.workspace_bytes + NUM_BLOCKS * need.kv_block_bytes
        self.llm = LLM(folder, max_device_memory=memory, **ASCEND, **types, **SIZES)
        assert self.llm.engine.pool.num_blocks <= NUM_BLOCKS


@pytest.mark.parametrize(("dialect", "has_bias"), DIALECTS)
def test_tokens_and_logits_are_hugging_faces_however_they_are_run(
    dialect: str,
    has_bias: bool,
    with_ascend: Counter[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, source = save_dialect(tmp_path, dialect, attention_bias=has_bias)
    model = hf_oracle.load(source)
    prompts = _prompts()
    expected = [hf_oracle.greedy_tokens_of(model, prompt, NUM_TOKENS) for prompt in prompts]
    texts = [prompt + tokens for prompt, tokens in zip(prompts, expected, strict=True)]
    monkeypatch.setattr(PromptLookup, "propose", _guesser(texts))
    watched = _Watched(folder, "float32", monkeypatch)
    with watched.llm as llm:
        alone = llm.generate(prompts[1], GREEDY)
        assert list(alone[0].token_ids) == expected[1]
        outputs = llm.generate(prompts, GREEDY)
        assert [list(output.token_ids) for output in outputs] == expected
        # That all of it happened:
        assert watched.kinds.keys() >= {"prompts", "answers", "a chunk", "chunks beside answers"}
        assert llm.engine.num_drafted > llm.engine.num_accepted > 0
        assert llm.engine.scheduler.num_preemptions > 0
        assert max(output.num_cached_tokens for output in outputs) > 0
        assert relative_error(llm.logits(texts[3]), hf_oracle.logits_of(model, texts[3])) < 1e-5


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
