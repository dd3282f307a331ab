"""The RoPE table against the one that Hugging Face makes."""

from typing import Any

import numpy as np
import pytest

from mindformers_glm.backends.cpu import rotary
from mindformers_glm.backends.cpu.rotary import build_cos_sin_table, build_inverse_frequencies
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.rounding import round_to_dtype
from tests.unit.core.glm_9b import GLM_9B

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CASES = {
    "plain": {},
    "plain, base of glm-4-9b-chat": {"rope_theta": 5e6, "max_position_embeddings": 131072},
    "plain, base of glm-4-9b-chat-1m": {"rope_theta": 1e8, "max_position_embeddings": 1048576},
    "YaRN 2": {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
    "YaRN 4": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "YaRN 1": {"rope_scaling": {"rope_type": "yarn", "factor": 1.0}},
    "YaRN, all keys": {
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 2.5,
            "attention_factor": 1.25,
            "beta_fast": 16.0,
            "beta_slow": 2.0,
        },
    },
    "YaRN, whole heads": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
        "partial_rotary_factor": 1.0,
    },
    "YaRN, a short context": {
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
        "max_position_embeddings": 64,
        "head_dim": 16,
    },
}
every_case = pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())


def read(changes: dict[str, Any]) -> GlmConfig:
    return GlmConfig.from_dict(GLM_9B.to_dict() | changes, "config.json")


def hugging_face(config: GlmConfig) -> Any:
    keys = config.to_dict()
    return transformers.models.glm4.modeling_glm4.Glm4RotaryEmbedding(
        transformers.Glm4Config(**keys)
    )


@every_case
def test_frequencies_are_hugging_faces(changes: dict[str, Any]):
    config = read(changes)
    found = build_inverse_frequencies(config.rotary_dim, config.rope_theta, config.rope_scaling)
    expected = hugging_face(config).inv_freq.numpy()
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=3e-7)  # both are rounded a few times


@every_case
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_tables_are_hugging_faces_up_to_the_last_position(changes: dict[str, Any], dtype: str):
    config = read(changes)
    last = config.max_position_embeddings - 1
    positions = np.unique(np.r_[0:70, np.geomspace(1, last, 200).astype(int), last])
    whole = build_cos_sin_table(
        last + 1, config.rotary_dim, config.rope_theta, config.rope_scaling, dtype
    )
    theirs = hugging_face(config)
    half = config.rotary_dim // 2
    cos, sin = (
        part[0, :, :half].float().numpy()
        for part in theirs(
            torch.zeros(1, dtype=getattr(torch, dtype)), torch.from_numpy(positions)[None]
        )
    )
    expected = np.concatenate((cos, sin), axis=1)
    # The last bit of a frequency turns a far position's angle by that much.
    angles = positions[:, None] * np.tile(theirs.inv_freq.numpy(), 2)[None, :]
    step = {"float32": 0, "bfloat16": 2**-7, "float16": 2**-10}[dtype]
    assert np.all(np.abs(whole[positions] - expected) <= 1e-6 + angles * 3e-7 + step)


def test_a_table_of_several_chunks_is_one_of_one(monkeypatch: pytest.MonkeyPatch):
    whole = build_cos_sin_table(100, 16, 1e4, None, "bfloat16")
    monkeypatch.setattr(rotary, "_CHUNK_POSITIONS", 7)
    np.testing.assert_array_equal(build_cos_sin_table(100, 16, 1e4, None, "bfloat16"), whole)
    np.testing.assert_array_equal(build_cos_sin_table(50, 16, 1e4, None, "bfloat16"), whole[:50])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_values_are_rounded_to_the_type(dtype: str):
    table = build_cos_sin_table(100, 16, 1e4, None, dtype)
    np.testing.assert_array_equal(table, round_to_dtype(table, dtype))
    assert np.any(table != build_cos_sin_table(100, 16, 1e4, None, "float32"))
