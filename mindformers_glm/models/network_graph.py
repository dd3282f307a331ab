"""The network as static graphs: token ids to hidden states, and on to logits."""

from itertools import pairwise

from mindspore import Parameter, Tensor, nn

from mindformers_glm.core.operators import Operators
from mindformers_glm.models.gpt_model import GPTModel, LogitsHead

# From 101 nodes in a graph on, MindSpore 2.7.1 spends half as much time again around each of them,
# and several times as much on a busy machine (docs/lab_notes.md). One rank's network is one node.
MAX_NODES_PER_GRAPH = 100
_MAX_OTHER_NODES = 7  # embedding and logits head, with what ranks send each other


class NetworkGraph(nn.Cell):
    """Consecutive operators of a network as one graph, which owns none of them.

    Every input has the size of the largest step of its row bucket; `num_rows` says how many rows
    are real (see backends/cpu/attn_metadata.py), and the operators leave the others alone.

    Args:
        parts: Cells with `operators()`, of the GPTModel.
        logits_head: what comes behind them, if anything.
    """

    def __init__(
        self,
        parts: list[nn.Cell],
        cos_sin: Parameter,
        logits_head: LogitsHead | None,
        operators: Operators,
    ) -> None:
        # Without prefixes: the parameters have their names.
        super().__init__(auto_prefix=False)
        self.cos_sin = cos_sin
        self.has_head = logits_head is not None
        # The Parameter behind what nodes after a sum over the ranks name: see OperatorSequence.
        inputs = ["num_rows", "cos_sin", "attn_metadata"]
        if logits_head is not None:
            parts = [*parts, logits_head]
            inputs = ["num_rows", "sample_rows", "num_samples", "cos_sin", "attn_metadata"]
            self.gather_logits = logits_head.gather_logits
        cells = [cell for part in parts for cell in part.operators()]
        self.sequence = operators.sequence(cells, inputs)

    def construct(
        self, first: Tensor, num_rows: Tensor, attn_metadata: Tensor, *samples: Tensor
    ) -> Tensor:
        """Run one step.

        Args:
            first: int32 [max_rows] token ids, or float32 [max_rows, hidden_size] hidden states
                where an earlier graph has the embedding.
            num_rows: int32 [1].
            attn_metadata: see backends/cpu/attn_metadata.py.
            samples: with the logits head int32 [max_samples] row numbers, and int32 [1] how many.
        Returns:
            float32 [max_rows, hidden_size] before the final norm, or [max_samples, vocab_size].
        """
        result = self.sequence(first, num_rows, *samples, self.cos_sin, attn_metadata)
        return self.gather_logits(result) if self.has_head else result


class LogitsGraph(nn.Cell):
    """The logits head as a graph of its own."""

    def __init__(self, logits_head: LogitsHead, operators: Operators) -> None:
        super().__init__(auto_prefix=False)
        inputs = ["sample_rows", "num_samples"]
        self.sequence = operators.sequence(logits_head.operators(), inputs)
        self.gather_logits = logits_head.gather_logits

    def construct(self, hidden_states: Tensor, sample_rows: Tensor, num_samples: Tensor) -> Tensor:
        """int32 [max_samples] row numbers -> float32 [max_samples, vocab_size] logits."""
        return self.gather_logits(self.sequence(hidden_states, sample_rows, num_samples))


class NetworkGraphs:
    """All graphs of a network.

    Attributes:
        hidden_states: one after the other they make hidden states of token ids.
        last_with_logits: the last of them with the logits head behind it.
        logits: the logits head alone.
    """

    def __init__(self, model: GPTModel, logits_head: LogitsHead, operators: Operators) -> None:
        parts = _split(model, operators)
        self.hidden_states = [NetworkGraph(part, model.cos_sin, None, operators) for part in parts]
        self.last_with_logits = NetworkGraph(parts[-1], model.cos_sin, logits_head, operators)
        self.logits = LogitsGraph(logits_head, operators)


def _split(model: GPTModel, operators: Operators) -> list[list[nn.Cell]]:
    layers = list(model.decoder.layers)
    nodes_per_layer = operators.sequence.count_nodes(layers[0].operators())
    layers_per_graph = (MAX_NODES_PER_GRAPH - _MAX_OTHER_NODES) // nodes_per_layer
    num_graphs = -(-len(layers) // layers_per_graph)
    bounds = [len(layers) * part // num_graphs for part in range(num_graphs + 1)]
    parts = [layers[begin:end] for begin, end in pairwise(bounds)]
    return [[model.embedding, *parts[0]], *parts[1:]]
