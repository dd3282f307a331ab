"""What rope_scaling and rope_parameters may say, and what the context becomes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.rope_scaling import RopeScaling
from mindformers_glm.core.errors import ConfigError, UnsupportedError
from tests.unit.core.glm_9b import GLM_9B

# As in the model card of GLM-4-9B-0414.
MODEL_CARD = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
PLAIN = GLM_9B.to_dict()


def read(**changes: Any) -> GlmConfig:
    return GlmConfig.from_dict(PLAIN | changes, "config.json")


def test_the_block_of_the_model_card_gives_four_times_the_context():
    config = read(rope_scaling=MODEL_CARD)
    assert config.max_position_embeddings == 131072
    assert config.rope_scaling == RopeScaling("yarn", 4.0, 32768, 1 + 0.1 * math.log(4), 32.0, 1.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_scaling": MODEL_CARD, "max_position_embeddings": 131072},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4}},
        {"rope_scaling": MODEL_CARD | {"rope_type": "yarn", "beta_fast": 32, "beta_slow": None}},
        {"rope_parameters": MODEL_CARD | {"rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
        {"rope_scaling": MODEL_CARD, "rope_parameters": {"rope_type": "default"}},
        {"rope_scaling": MODEL_CARD, "rope_parameters": MODEL_CARD},
    ],
    ids=str,
)
def test_other_ways_to_say_the_same(changes: dict[str, Any]):
    assert read(**changes) == read(rope_scaling=MODEL_CARD)


def test_every_constant_is_read():
    given = MODEL_CARD | {"attention_factor": 1.25, "beta_fast": 16, "beta_slow": 2.5}
    assert read(rope_scaling=given).rope_scaling == RopeScaling("yarn", 4.0, 32768, 1.25, 16.0, 2.5)


def test_plain_rope_has_no_scaling():
    assert read().rope_scaling is None
    assert read(rope_scaling={"rope_type": "default"}) == read(rope_scaling=None) == read()


def test_a_config_is_written_and_read_back(tmp_path: Path):
    config = read(rope_scaling=MODEL_CARD | {"attention_factor": 1.5})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    assert GlmConfig.from_hf(tmp_path) == config


@pytest.mark.parametrize("kind", ["linear", "dynamic", "llama3", "longrope", "ntk", 3, ["yarn"]])
@pytest.mark.parametrize("block", ["rope_scaling", "rope_parameters"])
def test_another_kind_is_refused_by_name(kind: Any, block: str):
    with pytest.raises(UnsupportedError) as caught:
        read(**{block: {"rope_type": kind, "factor": 2.0}})
    assert f"{block} asks for RoPE of type {kind!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mscale": 1.0}, "rope_scaling has 'mscale', which YaRN does not know here"),
        ({"truncate": False}, "'truncate'"),
        ({"type": "default"}, "'factor', which plain RoPE does not know"),
    ],
)
def test_an_unknown_key_is_refused_by_name(changes: dict[str, Any], words: str):
    with pytest.raises(UnsupportedError) as caught:
        read(rope_scaling=MODEL_CARD | changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"factor": None}, "'factor' is missing"),
        ({"factor": "4"}, "factor must be a number"),
        ({"factor": 0.5}, "factor of YaRN must be from 1"),
        ({"factor": float("nan")}, "factor of YaRN must be from 1"),
        ({"factor": float("inf")}, "factor of YaRN must be from 1"),
        ({"factor": 1e300}, "factor of YaRN must be from 1"),
        ({"factor": 1e8}, "max_position_embeddings must be from 1"),
        ({"original_max_position_embeddings": 0}, "original_max_position_embeddings must be from"),
        ({"original_max_position_embeddings": 10**400}, "original_max_position_embeddings must be"),
        ({"original_max_position_embeddings": 1.5}, "must be a whole number"),
        ({"attention_factor": 0}, "attention_factor of YaRN must be a positive number"),
        ({"beta_slow": -1}, "beta_slow of YaRN must be a positive number"),
        ({"beta_fast": 0.5}, "beta_fast=0.5 of YaRN must not be less than beta_slow=1.0"),
        ({"rope_type": "linear"}, "rope_type 'linear' and type 'yarn': keep one"),
        ({"factor": 2.0, "original_max_position_embeddings": 8192}, "is neither the 8192"),
    ],
)
def test_a_wrong_value_is_named(changes: dict[str, Any], words: str):
    with pytest.raises(ConfigError) as caught:
        read(rope_scaling=MODEL_CARD | changes)
    assert words in str(caught.value)
    assert str(caught.value).startswith("config.json: ")
    assert "\n" not in str(caught.value)


def test_two_blocks_must_agree():
    with pytest.raises(ConfigError, match="scale RoPE differently"):
        read(rope_scaling=MODEL_CARD, rope_parameters=MODEL_CARD | {"beta_fast": 16})


def test_a_base_that_yarn_cannot_take_the_logarithm_of_is_refused():
    with pytest.raises(ConfigError, match="rope_theta must be above 1 for YaRN"):
        read(rope_scaling=MODEL_CARD, rope_theta=1.0)
