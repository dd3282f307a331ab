"""The decoder-only network: token ids to hidden states, hidden states to logits."""

from mindformers.parallel_core.utils.spec_utils import ModuleSpec
from mindspore import Parameter, Tensor, nn

from mindformers_glm.backends.cpu.rotary import build_cos_sin_table
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.partition import partition
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.core.operators import Operators
from mindformers_glm.layers.transformer_layer import TransformerBlock


class GPTModel(nn.Cell):
    """Embedding and decoder: operators that make hidden states of token ids.

    NetworkGraph runs them.
    """

    def __init__(
        self,
        config: GlmConfig,
        settings: RunnerSettings,
        layer_spec: ModuleSpec,
        operators: Operators,
    ) -> None:
        super().__init__()
        self.embedding = LanguageModelEmbedding(config, settings, operators)
        self.decoder = TransformerBlock(config, settings, layer_spec)
        cos_sin = build_cos_sin_table(
            settings.max_model_len,
            config.rotary_dim,
            config.rope_theta,
            config.rope_scaling,
            settings.rotary_dtype,
        )
        # A nameless temporary and nothing else: Parameter would copy the table otherwise, which
        # takes 256 MB for a million tokens.
        self.cos_sin = Parameter(Tensor.from_numpy(cos_sin))
        self.cos_sin.name = "rotary_cos_sin"
        self.cos_sin.requires_grad = False


class LanguageModelEmbedding(nn.Cell):
    """Token embedding (Megatron-Core's name and place for it)."""

    def __init__(self, config: GlmConfig, settings: RunnerSettings, operators: Operators) -> None:
        super().__init__()
        sizes = partition(config, settings.tensor_parallel)
        self.word_embeddings = operators.embedding(
            sizes.vocab_size_per_partition,
            config.hidden_size,
            settings=settings,
            first_id=sizes.vocab_begin,
            vocab_size=config.vocab_size,
        )
        self.all_reduce = operators.all_reduce(settings.tensor_parallel)

    def operators(self) -> list[nn.Cell]:
        """Each token's row is on one rank, the others add zeros."""
        return [self.word_embeddings, self.all_reduce]


class LogitsHead(nn.Cell):
    """Final norm and output layer, only on the rows that are sampled."""

    def __init__(self, config: GlmConfig, settings: RunnerSettings, operators: Operators) -> None:
        super().__init__()
        self.gather_rows = operators.gather_rows(config.hidden_size)
        self.final_layernorm = operators.rms_norm(
            config.hidden_size, eps=config.rms_norm_eps, num_rows="num_samples"
        )
        self.output_layer = operators.linear(
            config.hidden_size,
            partition(config, settings.tensor_parallel).vocab_size_per_partition,
            settings=settings,
            name="output_layer",
            num_rows="num_samples",
        )
        self.gather_logits = operators.gather_logits(settings.tensor_parallel)

    def operators(self) -> list[nn.Cell]:
        """In the order in which each takes the one before's result; then ranks gather logits."""
        return [self.gather_rows, self.final_layernorm, self.output_layer]
