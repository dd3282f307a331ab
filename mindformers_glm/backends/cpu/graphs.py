"""The network as static graphs, which MindSpore compiles once for each shape of their inputs."""

from itertools import pairwise

from mindspore import nn

from mindformers_glm.backends.cpu.network import GPTModel, Step
from mindformers_glm.backends.cpu.program import Program
from mindformers_glm.backends.cpu.trace import Value

# From 101 nodes in a graph on, MindSpore 2.7.1 spends half as much time again around each of them,
# and several times as much on a busy machine (docs/lab_notes.md). One rank's network is one node.
MAX_NODES_PER_GRAPH = 100
_MAX_OTHER_NODES = 7  # embedding and logits head, with what ranks send each other


class NetworkGraphs:
    """All graphs of a network; each is a Program and names the inputs that it takes.

    Attributes:
        hidden_states: one after the other they make hidden states of token ids; the first takes
            `token_ids`, the others the one before's result as `hidden_states`.
        last_with_logits: the last of them with the logits of the sampled rows behind it.
        logits: the logits alone.
    """

    def __init__(self, model: GPTModel) -> None:
        parts = _split_layers(model)
        self.hidden_states = [_trace(model, part) for part in parts]
        self.last_with_logits = _trace(model, parts[-1], with_logits=True)
        self.logits = _trace(model, [], with_logits=True)


def _split_layers(model: GPTModel) -> list[list[nn.Cell]]:
    layers = list(model.decoder.layers)
    nodes_per_layer = len(_trace(model, layers[1:2] or layers).nodes)
    layers_per_graph = (MAX_NODES_PER_GRAPH - _MAX_OTHER_NODES) // nodes_per_layer
    num_graphs = -(-len(layers) // layers_per_graph)
    bounds = [len(layers) * part // num_graphs for part in range(num_graphs + 1)]
    return [layers[begin:end] for begin, end in pairwise(bounds)]


def _trace(model: GPTModel, layers: list[nn.Cell], with_logits: bool = False) -> Program:
    """Some consecutive layers, behind the embedding where they are the first ones.

    The inputs have the size of the largest step of their row bucket: `token_ids` int32 [max_rows]
    or `hidden_states` float32 [max_rows, hidden_size], `sample_rows` int32 [max_samples]; of which
    `num_rows` and `num_samples`, int32 [1], are real; and `attn_metadata` (attn_metadata.py). The
    result is float32 [max_rows, hidden_size] before the final norm, or [max_samples, vocab_size].
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
    x = inputs["hidden_states"]
    if layers and layers[0] is model.decoder.layers[0]:
        x = model.embedding(inputs["token_ids"])
    step = Step(model.cos_sin, inputs["attn_metadata"])
    for layer in layers:
        x = layer(x, step)
    if with_logits:
        x = model.compute_logits(x, inputs["sample_rows"])
    return Program(inputs, x)
