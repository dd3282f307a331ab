"""Contexts beyond what a model was trained for (YaRN)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mindformers_glm import LLM, SamplingParams
from mindformers_glm.core.errors import ConfigError
from mindformers_glm.models.glm4 import Glm4ForCausalLM
from tests.conftest import TOLERANCES, relative_error
from tests.model import hf_oracle

ORIGINAL = 64
PROMPT = np.random.default_rng(1).integers(2, 515, 200).tolist()


def save_with_yarn(folder: Path, factor: float, **changes: Any) -> Path:
    """A checkpoint for `factor` times 64 tokens, in the way that transformers 4.51.3 honours."""
    scaling = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": ORIGINAL,
    }
    return hf_oracle.save_random_checkpoint(
        folder,
        head_dim=64,
        max_position_embeddings=int(ORIGINAL * factor),
        rope_scaling=scaling | changes,
    )


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("factor", "changes"),
    [(4.0, {}), (2.0, {}), (4.0, {"attention_factor": 1.5, "beta_fast": 8.0, "beta_slow": 2.0})],
    ids=["4", "2", "all keys"],
)
def test_yarn_equals_hugging_face_beyond_the_trained_context(
    factor: float, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = save_with_yarn(tmp_path, factor, **changes)
    prompt = PROMPT[: int(ORIGINAL * factor) - 16]
    expected = hf_oracle.logits(folder, prompt)
    # As the model card says it, with the trained context in max_position_embeddings.
    edit_config(folder, max_position_embeddings=ORIGINAL)
    with LLM(folder) as llm:
        assert llm.settings.max_model_len == ORIGINAL * factor
        assert relative_error(llm.logits(prompt), expected) < TOLERANCES["logits_float32"]
        params = SamplingParams(max_new_tokens=16, do_sample=False, ignore_eos=True)
        (output,) = llm.generate([prompt], params)
    edit_config(folder, max_position_embeddings=int(ORIGINAL * factor))
    assert list(output.token_ids) == hf_oracle.greedy_tokens(folder, prompt, 16)
    # It is not what plain RoPE gives.
    edit_config(folder, rope_scaling=None)
    assert relative_error(expected, hf_oracle.logits(folder, prompt)) > 0.1


def test_yarn_reaches_the_registered_network(tmp_path: Path) -> None:
    folder = save_with_yarn(tmp_path, 4.0)
    expected = hf_oracle.greedy_tokens(folder, PROMPT, 8)
    network = Glm4ForCausalLM.from_pretrained(str(folder))
    assert network.glm_config.rope_scaling.factor == 4.0
    (tokens,) = network.generate([PROMPT], max_new_tokens=8, do_sample=False, eos_token_id=[])
    assert list(tokens[len(PROMPT) :]) == expected


def test_without_yarn_the_context_ends_where_config_json_says(tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, max_position_embeddings=ORIGINAL)
    with pytest.raises(ConfigError, match="max_position_embeddings=64"):
        LLM(folder, max_model_len=ORIGINAL + 1)
