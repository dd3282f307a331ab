"""GLM of every dialect as MindSpore Transformers' Mcore network.

What differs between the dialects is one switch of upstream's layer specification, which its own
`InferenceGlm4ForCausalLM` sets for GLM-4-0414 alone: whether a branch's output is normed too.
Source: mindformers 1.7.0, models/glm4/modeling_glm4_infer.py and
parallel_core/inference/base_models/gpt.
"""

from mindformers.models.glm4.configuration_glm4 import Glm4Config
from mindformers.models.glm4.modeling_glm4_infer import InferenceGlm4ForCausalLM
from mindformers.models.glm4.utils import Glm4PreTrainedModel
from mindformers.parallel_core.inference.base_models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
)
from mindformers.parallel_core.inference.base_models.gpt.gpt_model import GPTModel

from mindformers_glm.backends.ascend.quantization import StoredQuantization
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings


def make_upstream_config(config: GlmConfig, settings: RunnerSettings) -> Glm4Config:
    """The architecture of any dialect and the run's types, in the keys of upstream's Glm4Config."""
    return Glm4Config(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        partial_rotary_factor=config.partial_rotary_factor,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=config.rope_theta,
        attention_bias=config.attention_bias,
        hidden_act=config.hidden_act,
        tie_word_embeddings=config.tie_word_embeddings,
        # Upstream makes two pairs of rotary tables of this length, whatever is asked for later.
        max_position_embeddings=settings.max_model_len,
        sandwich_norm=config.has_sandwich_norms,
        block_size=settings.block_size,
        params_dtype=settings.params_dtype,
        compute_dtype=settings.compute_dtype,
        # The operator wants tables in the type of what it rotates.
        rotary_dtype=settings.compute_dtype,
        layernorm_compute_dtype="float32",
        softmax_compute_dtype="float32",
        pad_token_id=config.pad_token_id,
        eos_token_id=list(config.eos_token_ids),
    )


class AscendGlmForCausalLM(InferenceGlm4ForCausalLM):
    """Upstream's inference class, built for any dialect.

    Its `construct`, `set_dynamic_inputs` and flags are upstream's. `model.return_hidden_states`
    is set: the runner computes logits of the sampled rows only.
    """

    def __init__(self, config: Glm4Config, quantization: StoredQuantization | None = None) -> None:
        """Build the network.

        Args:
            quantization: of a checkpoint that is quantized; None: all layers are float.
        """
        # Not upstream's own __init__: it has norms behind both branches whatever the config says.
        Glm4PreTrainedModel.__init__(self, config, auto_prefix=False)
        transformer = self.convert_to_transformer_config(self.config)
        self.pad_token_id = self.config.pad_token_id
        self.vocab_size = transformer.vocab_size
        self.max_position_embeddings = transformer.max_position_embeddings
        self.compute_dtype = transformer.compute_dtype
        self.is_prefill = True
        self.plugin_type = None
        self.model = GPTModel(
            config=transformer,
            transformer_layer_spec=get_gpt_layer_local_spec(
                normalization=transformer.normalization,
                use_flash_attention=transformer.use_flash_attention,
                sandwich_norm=self.config.sandwich_norm,
            ),
            vocab_size=self.vocab_size,
            max_sequence_length=self.max_position_embeddings,
            rotary_percent=self.config.partial_rotary_factor,
            rotary_base=self.config.rope_theta,
            share_embeddings_and_output_weights=self.config.tie_word_embeddings,
            quant_config=quantization,
        )
        self.model.return_hidden_states = True
        self.set_train(False)
