"""Which parts of the network are one graph each; MindSpore compiles it for each shape of inputs."""

from enum import Enum, auto
from itertools import pairwise

from mindformers_glm.backends.cpu.network import GPTModel, Step, TransformerLayer
from mindformers_glm.backends.cpu.program import Graph
from mindformers_glm.backends.cpu.trace import Value

# From 101 nodes in a graph on, MindSpore 2.7.1 spends half as much time again around each of them,
# and several times as much on a busy machine (docs/lab_notes.md). One rank's network is one node.
MAX_NODES_PER_GRAPH = 100
_MAX_OTHER_NODES = 7  # embedding and logits head, with what ranks send each other


class _Result(Enum):
    """What a graph is run for."""

    HIDDEN_STATES = auto()
    LOGITS = auto()
    KV_CACHE = auto()


class NetworkGraphs:
    """All graphs of a network; each names the inputs that it takes.

    Attributes:
        hidden_states: one after the other they make hidden states of token ids; the first takes
            `token_ids`, the others the one before's result as `hidden_states`.
        last_with_logits: in place of the last of them, with the logits of the sampled rows.
        last_without_samples: in place of the last of them, where only the KV cache is wanted.
        logits: of hidden states.
    """

    def __init__(self, model: GPTModel) -> None:
        parts = _split_layers(model)
        self.hidden_states = [_make_graph(model, part) for part in parts]
        self.last_with_logits = _make_graph(model, parts[-1], _Result.LOGITS)
        self.last_without_samples = _make_graph(model, parts[-1], _Result.KV_CACHE)
        self.logits = _make_graph(model, [], _Result.LOGITS)


def _split_layers(model: GPTModel) -> list[list[TransformerLayer]]:
    layers = list(model.decoder.layers)
    nodes_per_layer = len(_make_graph(model, layers[1:2] or layers).nodes)
    layers_per_graph = (MAX_NODES_PER_GRAPH - _MAX_OTHER_NODES) // nodes_per_layer
    num_graphs = -(-len(layers) // layers_per_graph)
    bounds = [len(layers) * part // num_graphs for part in range(num_graphs + 1)]
    return [layers[begin:end] for begin, end in pairwise(bounds)]


def _make_graph(
    model: GPTModel,
    layers: list[TransformerLayer],
    result: _Result = _Result.HIDDEN_STATES,
) -> Graph:
    """Some consecutive layers, with what comes before the first one and behind the last one.

    Every input has the size of the largest step of its row bucket. `num_rows` (int32 [1]) says how
    many rows of `token_ids` or `hidden_states` are real, `num_samples` how many of `sample_rows`;
    `prompt_rows` and `prompt_samples` say which of them are of prompts, where a layer asks for it;
    `attn_metadata` is the vector of attn_metadata.py.
    """
    num_rows, num_samples, prompt_rows, prompt_samples = (Value() for _ in range(4))
    inputs = {
        "token_ids": Value(num_rows=num_rows, prompt_rows=prompt_rows),
        "hidden_states": Value(num_rows=num_rows, prompt_rows=prompt_rows),
        "num_rows": num_rows,
        "prompt_rows": prompt_rows,
        "attn_metadata": Value(),
        "sample_rows": Value(num_rows=num_samples, prompt_rows=prompt_samples),
        "num_samples": num_samples,
        "prompt_samples": prompt_samples,
    }
    is_first = bool(layers) and layers[0] is model.decoder.layers[0]
    x = inputs["token_ids" if is_first else "hidden_states"]
    step = Step(model.cos_sin, inputs["attn_metadata"])
    match result:
        case _Result.HIDDEN_STATES:
            return Graph(inputs, model(x, step, layers))
        case _Result.LOGITS:
            return Graph(inputs, model.compute_logits(x, step, layers, inputs["sample_rows"]))
        case _Result.KV_CACHE:
            return Graph(inputs, model.write_kv_cache(x, step, layers))
