"""The decoder-only network: token ids to hidden states, hidden states to logits."""

from itertools import pairwise

from mindformers.parallel_core.utils.spec_utils import ModuleSpec
from mindspore import Parameter, Tensor, nn

from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.core.operators import Operators
from mindformers_glm.core.runner_settings import RunnerSettings
from mindformers_glm.core.sharding import partition
from mindformers_glm.layers.rotary import build_cos_sin_table
from mindformers_glm.layers.transformer_layer import TransformerBlock

# From 101 nodes in a graph on, MindSpore 2.7.1 spends half as much time again around each of them,
# and several times as much on a busy machine (docs/lab_notes.md).
MAX_NODES_PER_GRAPH = 100
_MAX_OTHER_NODES = 7  # embedding and logits head, with what ranks send each other


class GPTModel(nn.Cell):
    """Embedding and decoder.

    Every input has the size of the largest step of its row bucket; `num_rows` says how many rows
    are real (see core/attn_metadata.py), and the operators leave the others alone.
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

    def construct(self, token_ids: Tensor, num_rows: Tensor, attn_metadata: Tensor) -> Tensor:
        """int32 [max_rows] token ids -> float32 [max_rows, hidden_size] before the final norm."""
        hidden_states = self.embedding(token_ids, num_rows)
        return self.decoder(hidden_states, self.cos_sin, num_rows, attn_metadata)

    def split_into_graphs(self) -> list[nn.Cell]:
        """Return Cells that do the same one after the other; each takes what the last one gave.

        Their inputs are those of `construct`, with the hidden states in place of the token ids
        from the second on.
        """
        layers = list(self.decoder.layers)
        layers_per_graph = (MAX_NODES_PER_GRAPH - _MAX_OTHER_NODES) // layers[0].num_nodes
        num_graphs = -(-len(layers) // layers_per_graph)
        if num_graphs == 1:
            return [self]
        bounds = [len(layers) * part // num_graphs for part in range(num_graphs + 1)]
        return [
            GPTModelPart(layers[begin:end], self.cos_sin, self.embedding if begin == 0 else None)
            for begin, end in pairwise(bounds)
        ]


class GPTModelPart(nn.Cell):
    """Consecutive layers of a GPTModel, which owns them; the first ones with the embedding."""

    def __init__(
        self, layers: list[nn.Cell], cos_sin: Parameter, embedding: nn.Cell | None
    ) -> None:
        # Without prefixes: the parameters have their names.
        super().__init__(auto_prefix=False)
        self.has_embedding = embedding is not None
        if embedding is not None:
            self.embedding = embedding
        self.layers = nn.CellList(layers, auto_prefix=False)
        self.cos_sin = cos_sin

    def construct(self, hidden_states: Tensor, num_rows: Tensor, attn_metadata: Tensor) -> Tensor:
        """Token ids or float32 [max_rows, hidden_size] -> float32 [max_rows, hidden_size]."""
        if self.has_embedding:
            hidden_states = self.embedding(hidden_states, num_rows)
        for layer in self.layers:
            hidden_states = layer(hidden_states, self.cos_sin, num_rows, attn_metadata)
        return hidden_states


class SampledPart(nn.Cell):
    """The last graph of a model with the logits head behind it; owns neither."""

    def __init__(self, model: nn.Cell, logits_head: nn.Cell) -> None:
        super().__init__(auto_prefix=False)
        self.model = model
        self.logits_head = logits_head

    def construct(
        self,
        hidden_states: Tensor,
        num_rows: Tensor,
        attn_metadata: Tensor,
        sample_rows: Tensor,
        num_samples: Tensor,
    ) -> Tensor:
        """Inputs of the model's `construct` and of LogitsHead -> logits of the sampled rows."""
        hidden_states = self.model(hidden_states, num_rows, attn_metadata)
        return self.logits_head(hidden_states, sample_rows, num_samples)


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
        all_reduce = operators.all_reduce(settings.tensor_parallel)
        self.look_up = operators.sequence([self.word_embeddings, all_reduce], ("num_rows",))

    def construct(self, token_ids: Tensor, num_rows: Tensor) -> Tensor:
        """Look up the rows of the token ids; each is on one rank, the others add zeros."""
        return self.look_up(token_ids, num_rows)


class LogitsHead(nn.Cell):
    """Final norm and output layer, only on the rows that are sampled."""

    def __init__(self, config: GlmConfig, settings: RunnerSettings, operators: Operators) -> None:
        super().__init__()
        self.final_layernorm = operators.rms_norm(config.hidden_size, eps=config.rms_norm_eps)
        self.output_layer = operators.linear(
            config.hidden_size,
            partition(config, settings.tensor_parallel).vocab_size_per_partition,
            settings=settings,
            name="output_layer",
        )
        gather_rows = operators.gather_rows(config.hidden_size)
        self.compute_logits = operators.sequence(
            [gather_rows, self.final_layernorm, self.output_layer],
            ("sample_rows", "num_rows"),
        )
        self.gather_logits = operators.gather_logits(settings.tensor_parallel)

    def construct(self, hidden_states: Tensor, sample_rows: Tensor, num_samples: Tensor) -> Tensor:
        """int32 [max_samples] row numbers -> float32 [max_samples, vocab_size] logits."""
        return self.gather_logits(self.compute_logits(hidden_states, sample_rows, num_samples))
