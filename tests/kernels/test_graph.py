"""Traces of operators inside a MindSpore graph, with caches written in place, called again."""

from collections.abc import Callable

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from mindspore import Tensor, nn  # noqa: E402  (mindspore may be missing)

from mindformers_glm.backends.cpu import tile_packing  # noqa: E402
from mindformers_glm.backends.cpu.allocation import allocate  # noqa: E402
from mindformers_glm.backends.cpu.parameters import as_parameter, replace_array  # noqa: E402
from mindformers_glm.backends.cpu.program import Graph  # noqa: E402
from mindformers_glm.backends.cpu.trace import Operator, Value, call, exchange  # noqa: E402
from tests.conftest import relative_error  # noqa: E402
from tests.kernels import reference  # noqa: E402
from tests.kernels.kernel_calls import SUFFIX, count, loaded, metadata, scalar, stored  # noqa: E402

EPS = 1e-5
HIDDEN, FFN, VOCAB = 48, 40, 50
HEADS, KV_HEADS, HEAD_DIM, ROTARY = 4, 2, 16, 8
BLOCKS, BLOCK_SIZE = 8, 4
WIDTH = (HEADS + 2 * KV_HEADS) * HEAD_DIM
ATTENTION = Operator("glm_attention", HEADS * HEAD_DIM, writes_operands=True)
GATHER = Operator("glm_gather_rows", HIDDEN, rows_operand=1)


class Weights:
    """Random matrices in float32, as the reference takes them."""

    def __init__(self, rng: np.random.Generator, dtype: str) -> None:
        def matrix(*shape: int) -> np.ndarray:
            values = rng.standard_normal(shape) / np.sqrt(shape[-1])
            return loaded(stored(values.astype(np.float32), dtype))

        self.dtype = dtype
        self.table = matrix(VOCAB, HIDDEN)
        self.qkv = [matrix(WIDTH, HIDDEN) for _ in range(2)]
        self.proj, self.fc1, self.fc2 = (
            matrix(HIDDEN, HEADS * HEAD_DIM),
            matrix(2 * FFN, HIDDEN),
            matrix(HIDDEN, FFN),
        )
        self.norm = rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32)
        self.bias = rng.standard_normal(WIDTH).astype(np.float32)
        self.cos_sin = np.cos(rng.uniform(0, 6, (32, ROTARY))).astype(np.float32)


class Network:
    """Two layers that share all weights but qkv, with a KV cache each, as a trace."""

    def __init__(self, weights: Weights) -> None:
        dtype = weights.dtype
        suffix = SUFFIX[dtype]

        def tiles(name: str, matrix: np.ndarray, is_gated: bool = False) -> ms.Parameter:
            rows = len(matrix) // (2 if is_gated else 1)
            array = allocate(tile_packing.packed_shape(rows, matrix.shape[1], is_gated), dtype)
            if is_gated:
                tile_packing.pack_gated(array, matrix, "float32", dtype)
            else:
                tile_packing.pack_rows(array, matrix, "float32", dtype, 0)
            return as_parameter(array, dtype, name)

        def plain(name: str, array: np.ndarray) -> ms.Parameter:
            return as_parameter(array, "float32", name)

        def cache(name: str) -> ms.Parameter:
            array = allocate((BLOCKS, KV_HEADS, BLOCK_SIZE, HEAD_DIM), dtype)
            return as_parameter(array, dtype, name)

        norm, bias = plain("norm", weights.norm), plain("bias", weights.bias)
        eps = scalar(EPS)
        proj, fc2 = tiles("proj", weights.proj), tiles("fc2", weights.fc2)
        fc1 = tiles("fc1", weights.fc1, is_gated=True)
        table = as_parameter(stored(weights.table, dtype), dtype, "table")
        cos_sin = plain("cos_sin", weights.cos_sin)
        inputs = Inputs()
        n, num_samples = inputs.num_rows, inputs.num_samples

        def add_branch(branch: Value, residual: Value) -> Value:
            return call(Operator("glm_rms_norm_add", HIDDEN), branch, norm, eps, residual, n)

        x = call(Operator("glm_embedding", HIDDEN), inputs.first, table, n)
        for layer, matrix in enumerate(weights.qkv):
            qkv = tiles(f"qkv_{layer}", matrix)
            h = call(Operator(f"glm_norm_linear_{suffix}", WIDTH), x, norm, eps, qkv, n, bias)
            caches = cache(f"k{layer}"), cache(f"v{layer}")
            h = call(ATTENTION, h, cos_sin, *caches, inputs.metadata)
            x = add_branch(call(Operator(f"glm_linear_{suffix}", HIDDEN), h, proj, n), x)
            h = call(Operator(f"glm_norm_gated_linear_{suffix}", FFN), x, norm, eps, fc1, n)
            x = add_branch(call(Operator(f"glm_linear_{suffix}", HIDDEN), h, fc2, n), x)
        x = call(GATHER, x, inputs.rows, num_samples)
        x = call(Operator("glm_rms_norm", HIDDEN), x, norm, eps, num_samples)
        self.graph = inputs.graph(x)

    def __call__(
        self, ids: Tensor, metadata: Tensor, num_rows: Tensor, rows: Tensor, num_samples: Tensor
    ) -> Tensor:
        """Token ids -> normalised hidden states of the sampled rows."""
        names = ("first", "num_rows", "rows", "num_samples", "metadata")
        assert self.graph.input_names == list(names)
        return self.graph(ids, num_rows, rows, num_samples, metadata)


class Inputs:
    """What the traces of these tests begin with."""

    def __init__(self) -> None:
        self.num_rows, self.num_samples, self.metadata = Value(), Value(), Value()
        self.first = Value(num_rows=self.num_rows)
        self.rows = Value(num_rows=self.num_samples)

    def graph(self, result: Value) -> Graph:
        """The trace that ends in `result`; inputs are named as here."""
        names = ("first", "num_rows", "rows", "num_samples", "metadata")
        return Graph({name: getattr(self, name) for name in names}, result)


def expected(weights: Weights, ids: np.ndarray, rows: reference.Rows) -> np.ndarray:
    """The same network with the NumPy reference, on a fresh cache."""
    w, n, dtype = weights, len(ids), weights.dtype
    x = reference.embedding(ids, w.table, n)
    for qkv_weight in w.qkv:
        keys, values = np.zeros((2, BLOCKS, KV_HEADS, BLOCK_SIZE, HEAD_DIM), np.float32)
        qkv = reference.norm_linear(x, w.norm, EPS, qkv_weight, n, w.bias, dtype)
        y = reference.attention(qkv, w.cos_sin, keys, values, rows, HEADS, dtype)
        y = reference.linear(y, w.proj, n, None, dtype)
        x = reference.rms_norm_add(y, w.norm, EPS, x, n)
        y = reference.norm_gated_linear(x, w.norm, EPS, w.fc1, n, dtype)
        x = reference.rms_norm_add(reference.linear(y, w.fc2, n, None, dtype), w.norm, EPS, x, n)
    return reference.rms_norm(x, w.norm, EPS, n)


def _rows(begin: int, end: int) -> reference.Rows:
    # One sequence whose tokens lie in blocks 3, 1, 6.
    table = np.int32([3, 1, 6])
    positions = np.arange(begin, end, dtype=np.int32)
    slots = table[positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE
    return reference.Rows(positions, slots, np.int32([0, end - begin]), table[None])


# Two layers in a half-precision type: errors of single roundings add up.
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_graph_in_three_steps_equals_reference_in_one(rng: np.random.Generator, dtype: str) -> None:
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0"})
    weights = Weights(rng, dtype)
    network = Network(weights)
    ids = rng.integers(0, VOCAB, 9).astype(np.int32)
    max_rows, max_samples = 6, 7
    found = []
    for begin, end in [(0, 5), (5, 6), (6, 9)]:  # prefill, decode, a chunk
        rows, n = _rows(begin, end), end - begin
        padded_ids = np.zeros(max_rows, np.int32)
        padded_ids[:n] = ids[begin:end]
        sampled = np.zeros(max_samples, np.int32)
        sampled[:n] = np.arange(n)
        out = network(
            Tensor(padded_ids),
            # Room for max_rows rows: the vector's length must not change from step to step.
            Tensor(metadata(rows, np.int32([end]), spare=max_rows - n, spare_seqs=1)),
            Tensor(count(n)),
            Tensor(sampled),
            Tensor(count(n)),
        )
        found.append(out.asnumpy()[:n].copy())
    error = relative_error(np.vstack(found), expected(weights, ids, _rows(0, 9)))
    assert error < TOLERANCE[dtype]


def test_parameter_is_the_array_itself() -> None:
    for dtype in ("float32", "bfloat16", "float16"):
        array = allocate((3, 5), dtype)
        parameter = as_parameter(array, dtype, "weight")
        assert parameter.data_ptr() == array.ctypes.data
        assert parameter.name == "weight"
        assert parameter.shape == (3, 5)
        array[1, 2] = stored(np.float32([1.5]), dtype)[0]
        assert parameter.asnumpy().astype(np.float32)[1, 2] == 1.5


def test_parameter_takes_another_array() -> None:
    for dtype in ("float32", "bfloat16", "float16", "uint8"):
        parameter = as_parameter(allocate((0, 5), dtype), dtype, "cache")
        array = allocate((3, 5), dtype)
        replace_array(parameter, array)
        assert parameter.data_ptr() == parameter.asnumpy().ctypes.data == array.ctypes.data
        assert parameter.shape == (3, 5)


class Double(nn.Cell):
    """Stands for the sum over two ranks that have the same."""

    def construct(self, x: Tensor) -> Tensor:
        """Twice x."""
        return x + x


def add(x: Value, residual: Value) -> Value:
    return call(Operator("glm_residual_add", HIDDEN), x, residual, x.num_rows)


def swap(x: Value, rows: Value) -> Value:
    return call(GATHER, x, rows, x.num_rows)


def names_of(graph: Graph) -> list[str]:
    """What runs in each node of the graph."""
    return [type(node).__name__ for node in graph.nodes]


def test_operators_of_one_rank_are_one_node() -> None:
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0"})
    inputs = Inputs()
    inputs.rows = Value(num_rows=inputs.num_rows)
    x, rows = inputs.first, inputs.rows
    # What is added has to outlive the copies.
    x = add(swap(swap(x, rows), rows), residual=x)
    x = add(swap(swap(swap(x, rows), rows), rows), residual=x)
    graph = inputs.graph(x)
    assert names_of(graph) == ["_OperatorNode"]
    values = np.arange(2 * HIDDEN, dtype=np.float32).reshape(2, HIDDEN)
    order = np.int32([1, 0])
    found = graph(Tensor(values), Tensor(count(2)), Tensor(order)).asnumpy()
    np.testing.assert_array_equal(found, 2 * (values + values[::-1]))


def test_ranks_exchange_between_two_nodes_and_a_result_that_is_needed_later_ends_one() -> None:
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0"})
    inputs, double = Inputs(), Double()
    first = inputs.first
    x = add(exchange(double, add(first, first)), residual=first)
    h = add(x, x)
    x = add(exchange(double, add(h, h)), residual=x)
    graph = inputs.graph(x)
    # The first sum with the residual ends a node, because the last one needs it.
    assert names_of(graph) == ["_OperatorNode", "_ExchangeNode", "_OperatorNode"] * 2
    assert [node.is_saved for node in graph.nodes] == [False] * 2 + [True] + [False] * 3
    values = np.ones((2, HIDDEN), np.float32)
    found = graph(Tensor(values), Tensor(count(2)))
    np.testing.assert_array_equal(found.asnumpy(), 45 * values)  # x = 4 + 1; 2 * 2 * 2 * 5 + 5


def test_a_result_that_two_nodes_need_is_made_once() -> None:
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0"})
    inputs = Inputs()
    early = add(inputs.first, inputs.first)
    late = exchange(Double(), add(early, early))
    graph = inputs.graph(add(late, residual=early))
    assert names_of(graph) == ["_OperatorNode", "_OperatorNode", "_ExchangeNode", "_OperatorNode"]
    values = np.ones((2, HIDDEN), np.float32)
    np.testing.assert_array_equal(graph(Tensor(values), Tensor(count(2))).asnumpy(), 10 * values)


def test_a_sum_over_ranks_behind_the_embedding_is_the_residual_stream() -> None:
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0"})
    values = np.arange(2 * HIDDEN, dtype=np.float32).reshape(2, HIDDEN)
    table = as_parameter(values, "float32", "table")
    ids, num_rows = Tensor(np.int32([1, 0])), Tensor(count(2))

    def network(sum_over_ranks: Callable[[Value], Value]) -> Graph:
        inputs = Inputs()
        x = call(Operator("glm_embedding", HIDDEN), inputs.first, table, inputs.num_rows)
        x = sum_over_ranks(x)
        return inputs.graph(add(sum_over_ranks(add(x, x)), residual=x))

    one_rank = network(lambda x: x)
    np.testing.assert_array_equal(one_rank(ids, num_rows).asnumpy(), 3 * values[::-1])
    two_ranks = network(lambda x: exchange(Double(), x))
    assert len(two_ranks.nodes) == 5
    np.testing.assert_array_equal(two_ranks(ids, num_rows).asnumpy(), 10 * values[::-1])


class WriteOnly(nn.Cell):
    """Calls attention and throws its result away."""

    def __init__(self, keys: ms.Parameter, values: ms.Parameter, cos_sin: ms.Parameter) -> None:
        super().__init__()
        inputs = Inputs()
        caches = (cos_sin, keys, values)
        attend = call(ATTENTION, inputs.first, *caches, inputs.metadata)
        self.attend = inputs.graph(attend)

    def construct(self, qkv: Tensor, metadata: Tensor) -> Tensor:
        """The qkv it was given."""
        self.attend(qkv, metadata)
        return qkv


def test_cache_is_written_even_if_nobody_reads_the_result(rng: np.random.Generator) -> None:
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0"})
    keys, values = np.zeros((2, BLOCKS, KV_HEADS, BLOCK_SIZE, HEAD_DIM), np.float32)
    cos_sin = as_parameter(np.ones((32, ROTARY), np.float32), "float32", "cos_sin")
    network = WriteOnly(
        as_parameter(keys, "float32", "keys"), as_parameter(values, "float32", "values"), cos_sin
    )
    qkv = rng.standard_normal((2, WIDTH)).astype(np.float32)
    network(Tensor(qkv), Tensor(metadata(_rows(0, 2), np.int32([2]))))
    written = values[3, :, :2].transpose(1, 0, 2).reshape(2, -1)
    np.testing.assert_array_equal(written, qkv[:, -KV_HEADS * HEAD_DIM :])
