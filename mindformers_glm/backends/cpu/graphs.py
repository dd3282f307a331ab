"""Which parts of the network are one graph each; MindSpore compiles it for each shape of inputs."""

from itertools import pairwise

from mindformers_glm.backends.cpu.network import GPTModel, TransformerLayer
from mindformers_glm.backends.cpu.program import Graph
from mindformers_glm.backends.cpu.trace import Value

# From 101 nodes in a graph on, MindSpore 2.7.1 spends half as much time again around each of them,
# and several times as much on a busy machine (docs/lab_notes.md). One rank's network is one node.
MAX_NODES_PER_GRAPH = 100
_MAX_OTHER_NODES = 7  # embedding and logits head, with what ranks send each other


class NetworkGraphs:
    """All graphs of a network; each names the inputs that it takes.

    Attributes:
        hidden_states: one after the other they make hidden states of token ids; the first takes
            `token_ids`, the others the one before's result as `hidden_states`.
        last_with_logits: the last of them with the logits of the sampled rows behind it.
        logits: the logits alone.
    """

    def __init__(self, model: GPTModel) -> None:
        parts = _split_layers(model)
        self.hidden_states = [_make_graph(model, part) for part in parts]
        self.last_with_logits = _make_graph(model, parts[-1], with_logits=True)
        self.logits = _make_graph(model, [], with_logits=True)


def _split_layers(model: GPTModel) -> list[list[TransformerLayer]]:
    layers = list(model.decoder.layers)
    nodes_per_layer = len(_make_graph(model, layers[1:2] or layers).nodes)
    layers_per_graph = (MAX_NODES_PER_GRAPH - _MAX_OTHER_NODES) // nodes_per_layer
    num_graphs = -(-len(layers) // layers_per_graph)
    bounds = [len(layers) * part // num_graphs for part in range(num_graphs + 1)]
    return [layers[begin:end] for begin, end in pairwise(bounds)]


def _make_graph(
    model: GPTModel, layers: list[TransformerLayer], with_logits: bool = False
) -> Graph:
    """Some consecutive layers, with what comes before the first one and behind the last one.

    Every input has the size of the largest step of its row bucket. `num_rows` (int32 [1]) says how
    many rows of `token_ids` or `hidden_states` are real, `num_samples` how many of `sample_rows`;
    `attn_metadata` is the vector of attn_metadata.py.
    """
    num_rows, num_samples = Value(), Value()
    inputs = {
        "token_ids": Value(num_rows=num_rows),
        "hidden_states": Value(num_rows=num_rows),
        "num_rows": num_rows,
        "attn_metadata": Value(),
        "sample_rows": Value(num_rows=num_samples),
        "num_samples": num_samples,
    }
    is_first = bool(layers) and layers[0] is model.decoder.layers[0]
    x = inputs["token_ids" if is_first else "hidden_states"]
    sample_rows = inputs["sample_rows"] if with_logits else None
    return Graph(inputs, model(x, inputs["attn_metadata"], layers, sample_rows))
