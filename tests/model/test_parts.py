"""The CPU's parts, each an operator of its own, make up the network that the CPU runs."""

from pathlib import Path

import numpy as np
import pytest

from mindformers_glm.backends.cpu.parts import CpuParts
from mindformers_glm.backends.part_steps import SelfTestSteps
from mindformers_glm.backends.parts import LOGITS, list_parts
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.sharding import TensorParallel
from mindformers_glm.weights.checkpoint import Checkpoint
from tests.conftest import relative_error
from tests.model import hf_oracle
from tests.model.dialects import save_dialect


@pytest.mark.parametrize("dialect", ["glm4", "glm", "chatglm"])
def test_parts_make_the_logits_of_the_network_and_of_hugging_face(
    dialect: str, tmp_path: Path
) -> None:
    from mindformers_glm.backends.cpu.runner import CpuModelRunner

    folder, source = save_dialect(tmp_path, dialect)
    config = GlmConfig.from_hf(folder)
    settings = RunnerSettings.for_config(config, "float32", max_model_len=64)
    steps = SelfTestSteps(config.vocab_size, settings.block_size, settings.max_model_len)
    with Checkpoint.open(folder, TensorParallel()) as checkpoint:
        parts = CpuParts(config, checkpoint, settings, steps.num_blocks)
        runner = CpuModelRunner(config, checkpoint, settings)
    runner.allocate_kv_cache(steps.num_blocks)
    for name, batch in steps:
        made = parts.run(batch)
        assert relative_error(made[LOGITS], runner.execute(batch)) < 1e-5, name
        # Followed by themselves they stay what they are.
        for part, value in parts.follow(batch, made).items():
            assert np.array_equal(value, made[part]), (name, part)
    assert set(made) == set(list_parts(config.num_hidden_layers))
    prompt = steps.greedy_prompt()
    found = parts.run(steps.greedy_step(prompt, 0))[LOGITS][0]
    assert relative_error(found, hf_oracle.logits(source, prompt)[-1]) < 1e-5
