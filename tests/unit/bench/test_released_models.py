"""The released models' keys, against what others counted and against the real config.json files."""

import json
import math
from pathlib import Path

import pytest
from released_models import MODELS

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.weights.rules import build_rules

# Parameters: GGUF conversion logs (0414), pytorch_model.bin.index.json (ChatGLM3-6B-32K), the same
# sizes elsewhere. KV cache bytes a token at 16 bits, by hand: 2 * layers * KV heads * 128 * 2.
EXPECTED = {
    "9b": (9.40e9, 40),
    "32b": (32.57e9, 61),
    "rumination-32b": (32.57e9 + 61 * 2 * 6 * 128 * 6144, 244),
    "glm-4-9b-chat-hf": (9.40e9, 40),
    "chatglm2-6b": (6.24e9, 28),
    "chatglm3-6b": (6.24e9, 28),
    "chatglm3-6b-32k": (6.24e9, 28),
    "glm-4-9b-chat": (9.40e9, 40),
    "glm-4-9b-chat-1m": (9.40e9 + 40 * 2 * 2 * 128 * 4097, 80),
}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_and_kv_cache_are_the_released_ones(name: str):
    config = GlmConfig.from_dict(MODELS[name], name)
    num_parameters, kv_kib = EXPECTED[name]
    rules = build_rules(config)
    count = sum(math.prod(source.shape) for rule in rules for source in rule.sources)
    assert count == pytest.approx(num_parameters, rel=1e-3)
    assert config.kv_bytes_per_token("bfloat16") == kv_kib * 1024


def test_chat_in_both_layouts_is_one_network():
    ours, theirs = (
        GlmConfig.from_dict(MODELS[name], name) for name in ("glm-4-9b-chat", "glm-4-9b-chat-hf")
    )
    chatglm, glm = (
        config.__dict__ | {"model_type": "", "architecture": ""} for config in (ours, theirs)
    )
    assert chatglm == glm


@pytest.mark.parametrize(
    ("name", "edited"),
    [
        ("chatglm2-6b", {"seq_length": 32768}),
        ("chatglm3-6b", {}),
        ("chatglm3-6b-32k", {"seq_length": 32768}),
        ("glm-4-9b-chat", {"seq_length": 131072}),
    ],
)
def test_the_real_files_say_the_same(name: str, edited: dict[str, int], shared_fixtures: Path):
    # Their source changed seq_length.
    real = json.loads((shared_fixtures / "tokenizers" / name / "config.json").read_text()) | edited
    assert GlmConfig.from_dict(real, "real") == GlmConfig.from_dict(MODELS[name], name)
