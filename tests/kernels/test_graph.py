"""Sequences of operators inside a MindSpore graph, with caches written in place, called again."""

from typing import Any

import numpy as np
import pytest

ms = pytest.importorskip("mindspore")

from mindspore import Tensor, nn  # noqa: E402  (mindspore may be missing)

from mindformers_glm.backends.cpu import (  # noqa: E402
    library,
    operators,
    reference,
)
from mindformers_glm.backends.cpu.allocation import allocate  # noqa: E402
from mindformers_glm.backends.cpu.collectives import AllReduce  # noqa: E402
from mindformers_glm.backends.cpu.parameters import as_parameter, replace_array  # noqa: E402
from mindformers_glm.backends.cpu.program import (  # noqa: E402
    PREVIOUS,
    RESIDUAL,
    OperatorSequence,
    Stage,
)
from mindformers_glm.core.sharding import TensorParallel  # noqa: E402
from tests.conftest import relative_error  # noqa: E402
from tests.kernels.kernel_calls import count, loaded, metadata, scalar, stored  # noqa: E402

EPS = 1e-5
HIDDEN, FFN, VOCAB = 48, 40, 50
HEADS, KV_HEADS, HEAD_DIM, ROTARY = 4, 2, 16, 8
BLOCKS, BLOCK_SIZE = 8, 4
WIDTH = (HEADS + 2 * KV_HEADS) * HEAD_DIM


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


class At:
    """An operator and what stands at its operands."""

    def __init__(
        self, operator: operators.Operator, *operands: Any, starts_residual: bool = False
    ) -> None:
        self._stage = Stage(operator, operands, starts_residual)

    def stage(self) -> Stage:
        """See OperatorCell."""
        return self._stage


class Network(nn.Cell):
    """Two layers that share all weights but qkv, with a KV cache each."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        dtype = weights.dtype

        def tiles(name: str, matrix: np.ndarray, is_gated: bool = False) -> ms.Parameter:
            rows = len(matrix) // (2 if is_gated else 1)
            array = allocate(library.packed_shape(rows, matrix.shape[1], is_gated), dtype)
            if is_gated:
                library.pack_gated(array, matrix, "float32", dtype)
            else:
                library.pack_rows(array, matrix, "float32", dtype, 0)
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
        self.cos_sin = Tensor(weights.cos_sin)

        add = At(operators.rms_norm_add(HIDDEN), PREVIOUS, norm, eps, RESIDUAL, "n")
        embed = At(operators.embedding(HIDDEN), PREVIOUS, table, "n", starts_residual=True)
        expand = [
            At(operators.norm_gated_linear(dtype, FFN), PREVIOUS, norm, eps, fc1, "n"),
            At(operators.linear(dtype, HIDDEN), PREVIOUS, fc2, "n"),
            add,
        ]
        layers = [
            [
                At(
                    operators.norm_linear(dtype, WIDTH),
                    *(PREVIOUS, norm, eps, tiles(f"qkv_{layer}", matrix), "n", bias),
                ),
                At(
                    operators.attention(HEADS, HEAD_DIM),
                    *(PREVIOUS, "cos_sin", cache(f"k{layer}"), cache(f"v{layer}"), "metadata"),
                ),
                At(operators.linear(dtype, HIDDEN), PREVIOUS, proj, "n"),
                add,
                *expand,
            ]
            for layer, matrix in enumerate(weights.qkv)
        ]
        sample = [
            At(operators.gather_rows(HIDDEN), PREVIOUS, "rows", "num_samples"),
            At(operators.rms_norm(HIDDEN), PREVIOUS, norm, eps, "num_samples"),
        ]
        self.run = OperatorSequence(
            [embed, *layers[0], *layers[1], *sample],
            ["n", "rows", "num_samples", "cos_sin", "metadata"],
        )

    def construct(
        self, ids: Tensor, metadata: Tensor, num_rows: Tensor, rows: Tensor, num_samples: Tensor
    ) -> Tensor:
        """Token ids -> normalised hidden states of the sampled rows."""
        return self.run(ids, num_rows, rows, num_samples, self.cos_sin, metadata)


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


class Doubled(AllReduce):
    """Stands for the sum over two ranks that have the same."""

    def __init__(self) -> None:
        super().__init__(TensorParallel(1))
        self.is_split = True

    def construct(self, x: Tensor) -> Tensor:
        """Twice x."""
        return x + x


def test_one_rank_runs_all_operators_in_one_node() -> None:
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0"})
    add = At(operators.residual_add(HIDDEN), PREVIOUS, RESIDUAL, "n")
    copy = At(operators.gather_rows(HIDDEN), PREVIOUS, "rows", "n")
    # What stays the residual stream has to outlive the copies.
    sequence = OperatorSequence([copy, copy, add, copy, copy, copy, add], ["n", "rows", "table"])
    assert len(sequence.nodes) == 1
    x = np.arange(2 * HIDDEN, dtype=np.float32).reshape(2, HIDDEN)
    rows = np.int32([1, 0])
    found = sequence(Tensor(x), Tensor(count(2)), Tensor(rows), Tensor(x)).asnumpy()
    np.testing.assert_array_equal(found, 2 * (x + x[::-1]))  # (x + x) + (x + x)[::-1]


def test_a_sum_over_ranks_stands_between_two_nodes() -> None:
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0"})
    add = At(operators.residual_add(HIDDEN), PREVIOUS, RESIDUAL, "n")
    double = At(operators.residual_add(HIDDEN), PREVIOUS, PREVIOUS, "n")
    cells = [double, Doubled(), add, double, double, Doubled(), add]
    sequence = OperatorSequence(cells, ["n", "table"])
    # The first `add` ends a node, which the last one needs the result of.
    nodes = list(sequence.nodes)
    assert OperatorSequence.count_nodes(cells) == 6
    assert [type(node).__name__ for node in nodes] == ["_Node", "_Sum", "_Node"] * 2
    # What no operator names is not handed on: MindSpore might copy it.
    assert [nodes[i].num_inputs for i in (0, 2, 3, 5)] == [3, 3, 3, 3]
    x = np.ones((2, HIDDEN), np.float32)
    found = sequence(Tensor(x), Tensor(count(2)), Tensor(x))
    np.testing.assert_array_equal(found.asnumpy(), 45 * x)  # x = 4 + 1; 2 * 2 * 2 * 5 + 5


def test_a_sum_over_ranks_behind_the_embedding_is_the_residual_stream() -> None:
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0"})
    x = np.arange(2 * HIDDEN, dtype=np.float32).reshape(2, HIDDEN)
    table = as_parameter(x, "float32", "table")
    embed = At(operators.embedding(HIDDEN), PREVIOUS, table, "n", starts_residual=True)
    double = At(operators.residual_add(HIDDEN), PREVIOUS, PREVIOUS, "n")
    add = At(operators.residual_add(HIDDEN), PREVIOUS, RESIDUAL, "n")
    ids, num_rows = Tensor(np.int32([1, 0])), Tensor(count(2))
    one_rank = OperatorSequence([embed, double, add], ["n"])
    np.testing.assert_array_equal(one_rank(ids, num_rows).asnumpy(), 3 * x[::-1])
    two_ranks = OperatorSequence([embed, Doubled(), double, Doubled(), add], ["n"])
    assert len(two_ranks.nodes) == 5
    np.testing.assert_array_equal(two_ranks(ids, num_rows).asnumpy(), 10 * x[::-1])


class WriteOnly(nn.Cell):
    """Calls attention and throws its result away."""

    def __init__(self, keys: ms.Parameter, values: ms.Parameter) -> None:
        super().__init__()
        attention = At(
            operators.attention(HEADS, HEAD_DIM), PREVIOUS, "cos_sin", keys, values, "metadata"
        )
        self.attend = OperatorSequence([attention], ["cos_sin", "metadata"])

    def construct(self, qkv: Tensor, cos_sin: Tensor, metadata: Tensor) -> Tensor:
        """The qkv it was given."""
        self.attend(qkv, cos_sin, metadata)
        return qkv


def test_cache_is_written_even_if_nobody_reads_the_result(rng: np.random.Generator) -> None:
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0"})
    keys, values = np.zeros((2, BLOCKS, KV_HEADS, BLOCK_SIZE, HEAD_DIM), np.float32)
    network = WriteOnly(
        as_parameter(keys, "float32", "keys"), as_parameter(values, "float32", "values")
    )
    qkv = rng.standard_normal((2, WIDTH)).astype(np.float32)
    cos_sin = np.ones((32, ROTARY), np.float32)
    network(Tensor(qkv), Tensor(cos_sin), Tensor(metadata(_rows(0, 2), np.int32([2]))))
    written = values[3, :, :2].transpose(1, 0, 2).reshape(2, -1)
    np.testing.assert_array_equal(written, qkv[:, -KV_HEADS * HEAD_DIM :])
