"""Configuration of GLM-4-0414 as MindSpore Transformers sees it."""

from typing import Any

from mindformers_glm.core.errors import ConfigError
from mindformers_glm.models.family import GlmFamilyConfig


class Glm4Config(GlmFamilyConfig):
    """The keys of a GLM-4-0414 config.json, plus the run's types and sizes.

    hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads,
    head_dim, vocab_size, max_position_embeddings, rms_norm_eps, rope_theta (or rope_parameters),
    partial_rotary_factor, attention_bias and hidden_act must be there: config/glm_keys.py reads
    them. The dialect has norms before and after attention and MLP; no key says so.

    Raises:
        ConfigError: a switch of upstream's class asks for another network.
    """

    model_type = "glm4"

    def __init__(self, **kwargs: Any) -> None:
        if kwargs.get("sandwich_norm") is False:
            raise ConfigError(
                "sandwich_norm must be true for glm4, it is false: layers without norms behind "
                "attention and MLP are model_type glm."
            )
        super().__init__(**kwargs)
