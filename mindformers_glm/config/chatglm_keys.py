"""The keys of a ChatGLM config.json: ChatGLM2, ChatGLM3, glm-4-9b, codegeex4 and their relatives.

These folders bring their own code, which is never run and whose files `auto_map` names; what it
does is fixed by the keys below. Old revisions and new ones differ in keys only (ChatGLM2's have no
`rope_ratio` and no `tie_word_embeddings`, new ones repeat `num_layers` as `num_hidden_layers`), and
both are read. Sizes must be there. A switch that is absent has the default of the official
configuration class; where that is another network than this one, the config is refused.
Read: configuration_chatglm.py and modeling_chatglm.py of chatglm2-6b, chatglm3-6b and glm-4-9b-chat
in several public copies, vLLM's chatglm.py.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mindformers_glm.config.json_keys import (
    SIZE_FIELDS,
    read_bool,
    read_float,
    read_int,
    read_shared_keys,
)
from mindformers_glm.core.errors import ConfigError, UnsupportedError

# Field of GlmConfig -> the key that has it here.
CHATGLM_KEY_NAMES = {
    "hidden_size": "hidden_size",
    "intermediate_size": "ffn_hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "multi_query_group_num",
    "head_dim": "kv_channels",
    "vocab_size": "padded_vocab_size",  # `vocab_size` is a copy that the official code never reads
    "max_position_embeddings": "seq_length",
    "rms_norm_eps": "layernorm_epsilon",
    "attention_bias": "add_qkv_bias",
}

_ROPE_BASE = 10000  # in modeling_chatglm.py; rope_ratio multiplies it
_ROTARY_SHARE = 0.5  # of a head's columns, in modeling_chatglm.py


@dataclass(frozen=True)
class _Switch:
    """A key that must have one value; `default` is the official class's where the key is absent."""

    key: str
    needed: bool
    default: bool
    otherwise: str


_SWITCHES = (
    _Switch("position_encoding_2d", False, False, "the first ChatGLM-6B, which is another network"),
    _Switch("multi_query_attention", True, False, "query, key and value interleaved by head"),
    _Switch("interleaved_qkv", False, False, "query, key and value interleaved by head"),
    _Switch("rmsnorm", True, True, "LayerNorm in place of RMSNorm"),
    _Switch("post_layer_norm", True, True, "no norm before the output layer"),
    _Switch("apply_residual_connection_post_layernorm", False, False, "a residual that is normed"),
    _Switch("add_bias_linear", False, False, "a bias in every linear layer"),
    _Switch("original_rope", True, True, "RoPE that rotates halves and not pairs, as CogAgent's"),
    _Switch("tie_word_embeddings", False, False, "a tied output layer, which ChatGLM never has"),
)
# Keys that change the network; null, 0 and false are fine.
_REFUSED = {
    "vision_config": "models that see images are not supported",
    "pre_seq_len": "prefixes of P-tuning are not supported: merge them or use the original model",
    "rope_scaling": "ChatGLM scales RoPE by rope_ratio only: remove rope_scaling",
    "rope_parameters": "ChatGLM scales RoPE by rope_ratio only: remove rope_parameters",
}


def read_chatglm_keys(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of GlmConfig from a config.json of `chatglm`."""
    for switch in _SWITCHES:
        value = read_bool(raw, switch.key) if switch.key in raw else switch.default
        if value != switch.needed:
            raise UnsupportedError(
                f"{switch.key} must be {_json(switch.needed)}, it is {_json(value)}"
                f"{'' if switch.key in raw else ' where it is absent'}: "
                f"{_json(value)} means {switch.otherwise}"
            )
    for key, reason in _REFUSED.items():
        if raw.get(key):
            raise UnsupportedError(f"it has {key!r}, but {reason}")
    copy = raw.get("num_hidden_layers")
    if copy is not None and copy != raw.get("num_layers"):
        raise ConfigError(
            f"num_layers is {raw.get('num_layers')!r} and num_hidden_layers {copy!r}: make them "
            "agree"
        )
    return {
        **{field: read_int(raw, CHATGLM_KEY_NAMES[field]) for field in SIZE_FIELDS},
        "rms_norm_eps": read_float(raw, "layernorm_epsilon"),
        "rope_theta": _read_rope_theta(raw),
        "partial_rotary_factor": _ROTARY_SHARE,
        "attention_bias": "add_qkv_bias" in raw and read_bool(raw, "add_qkv_bias"),
        "tie_word_embeddings": False,
        "hidden_act": "silu",  # in modeling_chatglm.py
        **read_shared_keys(raw),
    }


def write_chatglm_keys(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The keys that `read_chatglm_keys` reads back to `fields`; unset ones are left out."""
    keys = {key: fields[field] for field, key in CHATGLM_KEY_NAMES.items()}
    keys |= {switch.key: switch.needed for switch in _SWITCHES if switch.needed != switch.default}
    keys["rope_ratio"] = fields["rope_theta"] / _ROPE_BASE
    keys["eos_token_id"] = list(fields["eos_token_ids"])
    keys["float_layers_id"] = list(fields["float_layers_id"])
    others = ("model_type", "architectures", "torch_dtype", "bos_token_id", "pad_token_id")
    return keys | {key: fields[key] for key in others if fields[key] is not None}


def _read_rope_theta(raw: Mapping[str, Any]) -> float:
    """10000 * rope_ratio; ChatGLM2's and ChatGLM3's configs have no ratio, which means 1."""
    ratio = read_float(raw, "rope_ratio") if raw.get("rope_ratio") is not None else 1.0
    if not 0 < _ROPE_BASE * ratio < math.inf:
        raise ConfigError(f"rope_ratio must be a positive number, it is {ratio:g}")
    # The same key, but modeling_chatglm.py of ChatGLM2-6B-32K divides positions by it.
    if ratio != 1 and "chatglm2" in str(raw.get("_name_or_path", "")).lower():
        raise UnsupportedError(
            f"ChatGLM2 with rope_ratio={ratio:g} (ChatGLM2-6B-32K) interpolates positions, which "
            "is not supported: use ChatGLM3-6B-32K"
        )
    theta = _ROPE_BASE * ratio
    if raw.get("rope_theta") not in (None, theta):
        raise ConfigError(
            f"rope_theta is {raw['rope_theta']!r} and {_ROPE_BASE} * rope_ratio is {theta:g}: "
            "remove rope_theta, which ChatGLM does not read"
        )
    return theta


def _json(value: bool) -> str:
    return str(value).lower()
