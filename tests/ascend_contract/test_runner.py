"""What the runner does around upstream's network: full devices, no rows, graphs."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor

from mindformers_glm.backends.ascend import runner as runner_module
from mindformers_glm.backends.ascend.footprint import count_memory
from mindformers_glm.backends.ascend.full_memory import explain_full_memory
from mindformers_glm.backends.ascend.runner import AscendModelRunner
from mindformers_glm.backends.ascend.step_inputs import make_upstream_step
from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.errors import MemoryBudgetError
from tests.ascend_contract.steps import STEPS, KnownSequences, open_runner
from tests.model import hf_oracle


@pytest.mark.parametrize(
    "text",
    [
        "----\n- Memory not enough:\n----\nDevice(id:0) memory isn't enough and alloc failed, "
        "kernel name: Default/MatMul-op1, alloc size: 1073741824B.",
        "Allocate memory failed",
        "Device(id:0) memory isn't enough and alloc failed in output actor, kernel name: x",
    ],
)
def test_a_full_device_is_one_sentence(text: str) -> None:
    with (
        pytest.raises(MemoryBudgetError, match="no memory left for a step of 9 tokens"),
        explain_full_memory("a step of 9 tokens"),
    ):
        raise RuntimeError(text)


def test_other_problems_are_not_called_a_full_device() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), explain_full_memory("a step"):
        raise RuntimeError("shapes differ")


def test_a_step_that_finds_the_device_full_says_so(
    calls: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, num_hidden_layers=1)
    runner = open_runner(folder, "float32")
    sequences = KnownSequences(folder)
    assert runner.execute(ModelBatch.of_no_rows()).shape == (0, runner.vocab_size)

    def fail(self: AscendModelRunner, step: Any) -> None:
        raise RuntimeError("Memory not enough: current free memory size[1]")

    monkeypatch.setattr(AscendModelRunner, "_call_network", fail)
    with pytest.raises(MemoryBudgetError, match="a step of 29 tokens"):
        runner.execute(sequences.batch(*STEPS["four prompts"]))


def test_logits_of_many_rows_are_computed_in_parts(
    calls: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, num_hidden_layers=1)
    runner = open_runner(folder, "float32")
    monkeypatch.setattr(runner_module, "MAX_SAMPLES", 8)  # 29 rows: three parts and a rest
    errors = KnownSequences(folder).errors(runner.execute, {"all": STEPS["four prompts"]})
    assert errors["all"] < 1e-5


def test_the_mask_of_the_largest_chunk_is_counted(tmp_path: Path) -> None:
    config = GlmConfig.from_hf(hf_oracle.save_random_checkpoint(tmp_path))
    settings = RunnerSettings.with_defaults("float16", 2**16, max_model_len=2**16)
    rows = np.arange(2**16 - settings.max_num_batched_tokens, 2**16, dtype=np.int32)
    chunk = replace(
        ModelBatch.of_no_rows(),
        positions=rows,
        seq_lens=np.int32([2**16]),
        query_start=np.int32([0, len(rows)]),
        block_tables=[[0]],
    )
    mask = make_upstream_step(chunk, "float16").attention_mask
    assert count_memory(config, settings).workspace_bytes > mask.nbytes


class _Network:
    """Stands for a compiled network: notes what it is told."""

    def __init__(self) -> None:
        self.phase = ""
        self.told: list[tuple[str, Any]] = []
        self.model = SimpleNamespace(output_layer=lambda rows: rows)

    def add_flags_custom_mcore(self, is_prefill: bool) -> None:
        self.told.append(("flags", is_prefill))

    def __call__(self, **inputs: Any) -> Tensor:
        self.told.append(("run", self.phase))
        return Tensor(np.zeros((len(inputs["input_ids"].asnumpy()), 4), np.float32))


def test_each_graph_is_compiled_with_its_own_flags_and_called_by_its_phase(tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path)
    sequences = KnownSequences(folder)
    network = _Network()
    runner = object.__new__(AscendModelRunner)
    runner.__dict__ |= {
        "network": network,
        "_settings": SimpleNamespace(compute_dtype="float32"),
        **{"vocab_size": 4, "compile_s": 0.0, "_has_graphs": True, "_compiled": set()},
        **{"_phase": "", "_key_cache": None, "_value_cache": None},
    }
    names = ["four prompts", "an answer each", "four prompts", "a chunk beside an answer"]
    for name in names:
        runner.execute(sequences.batch(*STEPS[name]))
    prefill, others = ("run", "prefill"), ("run", "increment")
    assert network.told == [("flags", True), prefill, ("flags", False), others, prefill, others]
    assert runner.compile_s > 0
