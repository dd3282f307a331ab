"""What follows the last layer's attention is computed for the sampled rows, and no other."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("mindspore")

from mindformers_glm import LLM
from mindformers_glm.backends.cpu.program import Graph
from mindformers_glm.backends.cpu.trace import OperatorCall, Value
from mindformers_glm.backends.runner import ModelBatch
from tests.model import hf_oracle

_NUM_ROWS = 45
_FORMATS: list[dict[str, Any]] = [
    {"params_dtype": "float32"},
    {"params_dtype": "bfloat16"},
    *({"quantization": name} for name in ("w8a16", "w8a8_dynamic", "w4a16", "w4a8_dynamic")),
]


def _batch(sample_rows: list[int], first: int = 0, last: int = _NUM_ROWS) -> ModelBatch:
    """Rows first..last - 1 of one sequence of _NUM_ROWS tokens, in blocks 0, 1, ... of 16."""
    positions = np.arange(first, last, dtype=np.int32)
    return ModelBatch(
        token_ids=(7 * positions + 3) % 500,
        positions=positions,
        slot_mapping=positions,
        query_start=np.int32([0, last - first]),
        seq_lens=np.int32([last]),
        block_tables=[list(range(-(-last // 16)))],
        sample_rows=np.int32(sample_rows),
        is_prompt=np.ones(len(positions), np.int32),
    )


@pytest.mark.parametrize("chosen", _FORMATS, ids=lambda chosen: "-".join(chosen.values()))
@pytest.mark.parametrize("model_type", ["glm4", "glm"])
def test_a_sampled_row_has_the_bits_it_has_among_all(
    model_type: str, chosen: dict[str, str], tmp_path: Path
) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path, model_type=model_type)
    with LLM(str(folder), block_size=16, **chosen) as llm:
        runner = llm.engine.runner
        every = runner.execute(_batch(list(range(_NUM_ROWS))))  # more than one graph samples
        some = runner.execute(_batch([0, 31, 44]))
        last = runner.execute(_batch([44]))
        assert runner.execute(_batch([], last=32)).shape == (0, runner.vocab_size)
        after_a_chunk = runner.execute(_batch([12], first=32))
    np.testing.assert_array_equal(some, every[[0, 31, 44]])
    np.testing.assert_array_equal(last, every[[44]])
    np.testing.assert_array_equal(after_a_chunk, every[[44]])


@pytest.mark.parametrize("params_dtype", ["float32", "bfloat16"])
def test_rows_of_many_sequences_are_sampled_in_one_graph(params_dtype: str, tmp_path: Path) -> None:
    folder = hf_oracle.save_random_checkpoint(tmp_path)
    batch = _batch(list(range(_NUM_ROWS)))
    found = []
    for max_num_seqs in (32, _NUM_ROWS):
        sizes = {"block_size": 16, "max_num_seqs": max_num_seqs}
        with LLM(str(folder), params_dtype=params_dtype, **sizes) as llm:
            runner = llm.engine.runner
            found.append(runner.execute(batch))
            num_joined = {32: 1, _NUM_ROWS: 0}[max_num_seqs]
            assert sum(graph is runner._graphs.logits for graph, *_ in runner._compiled) in (
                num_joined,
                2 * num_joined,  # parts of 32 and of 13 rows have inputs of different sizes
            )
    np.testing.assert_array_equal(*found)


def test_the_last_layer_runs_for_sampled_rows_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traces: list[tuple[dict[str, Value], list[Value]]] = []
    keep = Graph.__init__

    def record(graph: Graph, inputs: dict[str, Value], result: Value) -> None:
        traces.append((inputs, result.history()))
        keep(graph, inputs, result)

    monkeypatch.setattr(Graph, "__init__", record)
    folder = hf_oracle.save_random_checkpoint(tmp_path, num_hidden_layers=2)
    with LLM(str(folder)):
        counts = {_count_operators(*trace) for trace in traces}
    # Embedding and 7 operators a layer; 5 of the last one and the head are of sampled rows; where
    # there are none, the last layer's first product and the write remain.
    assert (1 + 7 + 2, 2 + 5 + 2) in counts
    assert (1 + 7 + 2, 0) in counts


def _count_operators(inputs: dict[str, Value], history: list[Value]) -> tuple[int, int]:
    """Of all rows, and of sampled rows."""
    calls = [value for value in history if isinstance(value.made_by, OperatorCall)]
    sampled = sum(value.num_rows is inputs["num_samples"] for value in calls)
    return len(calls) - sampled, sampled
