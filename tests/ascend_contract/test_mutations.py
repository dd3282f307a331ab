"""A wrong step is found: every mistake that our runner could make fails a test of S1.

Found means that a reference refuses the call or that logits differ from Hugging Face's.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindformers_glm.backends.ascend import runner as runner_module
from mindformers_glm.backends.ascend.runner import AscendModelRunner
from mindformers_glm.backends.ascend.step_inputs import UpstreamStep, make_upstream_step
from mindformers_glm.backends.runner import ModelBatch
from tests.ascend_contract.install import in_pynative_mode
from tests.ascend_contract.references import ContractError
from tests.ascend_contract.steps import NUM_BLOCKS, KnownSequences, open_runner
from tests.model import hf_oracle

Change = Callable[[UpstreamStep], Any]


def _has_row_mask(step: UpstreamStep) -> bool:
    return not step.is_prefill and step.attention_mask.size > 1


def _mask_of_prompts(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda step: {"attention_mask": change(step.attention_mask)} if step.is_prefill else {}


def _mask_of_rows(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda step: (
        {"attention_mask": change(step.attention_mask)} if _has_row_mask(step) else {}
    )


def _within_the_step(step: UpstreamStep) -> np.ndarray:
    return np.concatenate([np.arange(length) for length in step.q_seq_lens]).astype(np.int32)


MUTATIONS: dict[str, Change] = {
    "prompts: nothing is masked": _mask_of_prompts(np.zeros_like),
    "prompts: the lower triangle is masked": _mask_of_prompts(np.transpose),
    "prompts: the own token is masked": _mask_of_prompts(lambda mask: np.roll(mask, -1, 1)),
    "prompts: a mask as large as the step": _mask_of_prompts(lambda mask: mask[:29, :29]),
    "prompts: a mask of another type": _mask_of_prompts(lambda mask: mask.astype(np.float16)),
    "prompts: the mask of bfloat16": _mask_of_prompts(lambda mask: (mask != 0).astype(mask.dtype)),
    "rows: hidden by a little": _mask_of_rows(np.sign),
    "rows: the next token is seen": _mask_of_rows(lambda mask: np.roll(mask, 1, 1)),
    "rows: the own token is masked": _mask_of_rows(lambda mask: np.roll(mask, -1, 1)),
    "rows: no mask": _mask_of_rows(lambda mask: mask[:1, :1]),
    "rows: a row too few": _mask_of_rows(lambda mask: mask[1:]),
    "rows: a column too few": _mask_of_rows(lambda mask: mask[:, 1:]),
    "rows: in another order": _mask_of_rows(lambda mask: mask[::-1]),
    "rows: a mask of another type": _mask_of_rows(lambda mask: mask.astype(np.float16)),
    "lengths without the new tokens": lambda s: {"batch_valid_length": s.context_lens_tensor},
    "lengths of the new tokens": lambda s: {"batch_valid_length": s.q_seq_lens},
    "lengths one too long": lambda s: {"batch_valid_length": s.batch_valid_length + 1},
    "lengths in int64": lambda s: {"batch_valid_length": s.batch_valid_length.astype(np.int64)},
    "query lengths of the whole": lambda s: {"q_seq_lens": s.batch_valid_length},
    "query lengths of one": lambda s: {"q_seq_lens": np.ones_like(s.q_seq_lens)},
    "query lengths cumulated": lambda s: {"q_seq_lens": np.cumsum(s.q_seq_lens, dtype=np.int32)},
    "query lengths in another order": lambda s: {"q_seq_lens": s.q_seq_lens[::-1]},
    "contexts of the whole": lambda s: {"context_lens_tensor": s.batch_valid_length},
    "contexts of nothing": lambda s: {"context_lens_tensor": np.zeros_like(s.q_seq_lens)},
    "slots one further": lambda s: {"slot_mapping": s.slot_mapping + 1},
    "slots in another order": lambda s: {"slot_mapping": s.slot_mapping[::-1]},
    "slots from the start": lambda s: {"slot_mapping": _within_the_step(s)},
    "slots by row": lambda s: {"slot_mapping": np.arange(len(s.input_ids), dtype=np.int32)},
    "no slots": lambda s: {"slot_mapping": np.full_like(s.slot_mapping, -1)},
    "tables in another order": lambda s: {"block_tables": s.block_tables[::-1]},
    "tables of zeros": lambda s: {"block_tables": np.zeros_like(s.block_tables)},
    "tables without their last block": lambda s: {"block_tables": s.block_tables[:, :-1]},
    "tables turned": lambda s: {"block_tables": np.roll(s.block_tables, 1, 1)},
    "positions one further": lambda s: {"positions": s.positions + 1},
    "positions within the step": lambda s: {"positions": _within_the_step(s)},
    "tokens in another order": lambda s: {"input_ids": s.input_ids[::-1]},
    "never a prefill": lambda s: {"is_prefill": False},
    "always a prefill": lambda s: {"is_prefill": True},
    "prefill and other steps confused": lambda s: {"is_prefill": not s.is_prefill},
}
SAMPLE_ROWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "one earlier": lambda rows: np.roll(rows, 1),
    "in another order": lambda rows: rows[::-1],
    "the first of all": np.zeros_like,
}
_FOUND = 1e-3  # what is right has errors below 1e-5


@pytest.fixture(scope="module")
def calls() -> Iterator[Counter[str]]:
    with in_pynative_mode() as counted:
        yield counted


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_oracle.save_random_checkpoint(tmp_path_factory.mktemp("glm4"))


@pytest.fixture(scope="module")
def sequences(source: Path) -> KnownSequences:
    return KnownSequences(source)


@pytest.fixture(scope="module")
def runner(source: Path, calls: Counter[str]) -> AscendModelRunner:
    return open_runner(source, "float32")


@pytest.fixture(autouse=True)
def empty_cache(runner: AscendModelRunner) -> None:
    """What an earlier step has left would hide that a wrong one left nothing."""
    runner.allocate_kv_cache(NUM_BLOCKS)


def _is_found(runner: AscendModelRunner, sequences: KnownSequences) -> bool:
    try:
        return max(sequences.errors(runner.execute).values()) > _FOUND
    except ContractError:
        return True


def test_a_right_step_is_not(runner: AscendModelRunner, sequences: KnownSequences) -> None:
    assert not _is_found(runner, sequences)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_step_is_found(
    mutation: str,
    runner: AscendModelRunner,
    sequences: KnownSequences,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def mutated(batch: ModelBatch, compute_dtype: str) -> UpstreamStep:
        step = make_upstream_step(batch, compute_dtype)
        return replace(step, **MUTATIONS[mutation](step))

    monkeypatch.setattr(runner_module, "make_upstream_step", mutated)
    assert _is_found(runner, sequences)


@pytest.mark.parametrize("mutation", SAMPLE_ROWS)
def test_wrong_sample_rows_are_found(
    mutation: str,
    runner: AscendModelRunner,
    sequences: KnownSequences,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    execute = AscendModelRunner.execute

    def mutated(self: AscendModelRunner, batch: ModelBatch) -> np.ndarray:
        return execute(self, replace(batch, sample_rows=SAMPLE_ROWS[mutation](batch.sample_rows)))

    monkeypatch.setattr(AscendModelRunner, "execute", mutated)
    assert _is_found(runner, sequences)
