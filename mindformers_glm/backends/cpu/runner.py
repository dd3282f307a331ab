"""The runner on static graphs: one for each row bucket, compiled on first use."""

import threading
import time
from collections.abc import Iterable

import numpy as np
from mindspore import Tensor

from mindformers_glm.backends.cpu import host_ranks, library, mapped_memory
from mindformers_glm.backends.cpu.attn_metadata import AttnMetadataBuffer
from mindformers_glm.backends.cpu.collectives import explain_failed_exchange
from mindformers_glm.backends.cpu.footprint import FEW_SAMPLES, count_memory, count_samples
from mindformers_glm.backends.cpu.graphs import NetworkGraphs
from mindformers_glm.backends.cpu.loading import kv_cache_arrays, load_network, weight_arrays
from mindformers_glm.backends.cpu.network import GPTModel
from mindformers_glm.backends.cpu.program import Graph
from mindformers_glm.backends.forking import check_not_forked
from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.system.interrupts import delay_interrupts, interrupts_raise
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.packed_cache import PackedCacheSettings

# Rows a graph is compiled for; a step takes the smallest that holds it. Operators touch only the
# real rows, so a larger bucket costs addresses and not time, and one for all steps up to 512 rows
# is compiled once: 40 layers take seconds.
_ROW_BUCKETS: tuple[int, ...] = (512, 2048, 8192)
# Ranks of several hosts send each other every row of the bucket: half of them for a graph more.
_SPLIT_ROW_BUCKETS: tuple[int, ...] = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
# MindSpore 2.7.1 waits for ever where two threads run graphs at the same time.
_ONE_AT_A_TIME = threading.Lock()
_PHASE = "increment"  # one of the two in which MindSpore runs compiled graphs directly


class CpuModelRunner:
    """A loaded network (protocol: backends/runner.py).

    Raises:
        CheckpointError: a file is damaged, or tensors are missing, unknown or of wrong shape.
    """

    def __init__(
        self,
        config: GlmConfig,
        checkpoint: Checkpoint,
        settings: RunnerSettings,
        packed_cache: PackedCacheSettings | None = None,
    ) -> None:
        check_not_forked()
        self.network = GPTModel(config, settings)
        self._config, self._settings = config, settings
        self.load_weights(checkpoint, packed_cache)
        need = count_memory(config, settings)
        self.workspace_bytes, self.kv_block_bytes = need.workspace_bytes, need.kv_block_bytes
        self.weights_bytes = sum(array.nbytes for array in weight_arrays(self.network).values())
        self.vocab_size = config.vocab_size
        self._sends_all_rows = settings.model_parallel > 1 and not host_ranks.are_joined()
        self._graphs = NetworkGraphs(self.network)
        # MindSpore's names for the graphs compiled so far, by cell and shapes of the inputs.
        self._compiled: dict[tuple[object, ...], str] = {}
        self.compile_s = 0.0
        largest = settings.max_num_batched_tokens
        all_buckets = _SPLIT_ROW_BUCKETS if self._sends_all_rows else _ROW_BUCKETS
        buckets = [*(size for size in all_buckets if size < largest), largest]
        self._row_inputs = {rows: _RowInputs(rows, settings) for rows in buckets}
        self._max_samples = count_samples(settings)
        sample_buckets = {min(rows, self._max_samples) for rows in buckets}
        self._sample_inputs = {samples: _SampleInputs(samples) for samples in sample_buckets}

    def load_weights(
        self, checkpoint: Checkpoint, packed_cache: PackedCacheSettings | None = None
    ) -> None:
        """Fill the Parameters, again with other weights."""
        loaded = load_network(self.network, self._config, checkpoint, self._settings, packed_cache)
        library.leave_team()  # the steps may run on another thread
        self.mapped_weight_bytes, self.read_weight_bytes = loaded.mapped, loaded.read

    def allocate_kv_cache(self, num_blocks: int) -> None:
        """Reserve the KV cache; once, before the first step."""
        for layer in self.network.decoder.layers:
            layer.self_attention.core_attention.allocate_kv_cache(num_blocks)

    def close(self) -> None:
        """Give the memory of weights and KV cache back; MindSpore's graphs keep the Parameters."""
        for array in (*weight_arrays(self.network).values(), *kv_cache_arrays(self.network)):
            mapped_memory.give_back(array)

    def execute(self, batch: ModelBatch) -> np.ndarray:
        """Run one step; see backends/runner.py.

        Returns:
            float32 [len(batch.sample_rows), vocab_size].
        """
        check_not_forked()
        with _ONE_AT_A_TIME, interrupts_raise(), explain_failed_exchange():
            return self._execute(batch)

    def _execute(self, batch: ModelBatch) -> np.ndarray:
        library.keep_team()
        bucket = _smallest_bucket(self._row_inputs, len(batch.token_ids))
        inputs = self._row_inputs[bucket].fill(batch)
        *graphs, last = self._graphs.hidden_states
        for graph in graphs:
            inputs["hidden_states"] = self._run(graph, inputs)
        # asnumpy() waits for the graph: the next step reuses the input buffers.
        num_samples = len(batch.sample_rows)
        if num_samples == 0 and len(batch.token_ids) > 0:  # without rows it is a step to warm up
            self._run(self._graphs.last_without_samples, inputs).asnumpy()
            return np.empty((0, self.vocab_size), np.float32)
        if num_samples <= self._max_samples:
            samples = self._sample_inputs_of(bucket, num_samples)
            inputs |= samples.fill(batch.sample_rows, batch.is_prompt)
            logits = self._run(self._graphs.last_with_logits, inputs)
            return logits.asnumpy()[:num_samples]
        hidden_states = self._run(last, inputs)
        hidden_states.asnumpy()
        return self._compute_logits(hidden_states, batch.sample_rows, batch.is_prompt)

    def _sample_inputs_of(self, bucket: int, num_samples: int) -> "_SampleInputs":
        # A prompt by itself, the common case, gets a graph for one row.
        if self._sends_all_rows and num_samples == 1 and bucket > FEW_SAMPLES:
            return self._sample_inputs[1]
        return self._sample_inputs[min(bucket, self._max_samples)]

    def _compute_logits(
        self, hidden_states: Tensor, sample_rows: np.ndarray, is_prompt: np.ndarray
    ) -> np.ndarray:
        logits = np.empty((len(sample_rows), self.vocab_size), np.float32)
        for start in range(0, len(sample_rows), self._max_samples):
            rows = sample_rows[start : start + self._max_samples]
            samples = self._sample_inputs[_smallest_bucket(self._sample_inputs, len(rows))]
            inputs = {"hidden_states": hidden_states, **samples.fill(rows, is_prompt)}
            part = self._run(self._graphs.logits, inputs)
            logits[start : start + len(rows)] = part.asnumpy()[: len(rows)]
        return logits

    def _run(self, graph: Graph, inputs: dict[str, Tensor]) -> Tensor:
        """Call a graph with those of the inputs that it names; for new shapes it is compiled.

        A cell in the phase "increment" runs the graph that `phase_cache` names and looks at nothing
        else; in any other phase it prepares for compiling first, in time that grows with the
        number of its parts.
        """
        tensors = [inputs[name] for name in graph.input_names]
        signature = (graph, *(tensor.shape for tensor in tensors))
        if signature in self._compiled:
            graph.phase_cache[_PHASE] = self._compiled[signature]
            return graph(*tensors)
        graph.phase = _PHASE
        graph.phase_cache.pop(_PHASE, None)
        with delay_interrupts():
            started_s = time.perf_counter()
            graph.compile(*tensors)
            self.compile_s += time.perf_counter() - started_s
            output = graph(*tensors)
        self._compiled[signature] = graph.phase_cache[_PHASE]
        return output


class _RowInputs:
    """Input tensors of one row bucket; they share memory with NumPy arrays refilled every step."""

    def __init__(self, max_rows: int, settings: RunnerSettings) -> None:
        self._token_ids = np.zeros(max_rows, np.int32)
        self._num_rows = np.zeros(1, np.int32)
        self._prompt_rows = np.zeros(max_rows, np.int32)
        self._metadata = AttnMetadataBuffer(
            max_rows, min(max_rows, settings.max_num_seqs), settings.max_blocks_per_seq
        )
        self._tensors = {
            "token_ids": Tensor.from_numpy(self._token_ids),
            "num_rows": Tensor.from_numpy(self._num_rows),
            "prompt_rows": Tensor.from_numpy(self._prompt_rows),
            "attn_metadata": Tensor.from_numpy(self._metadata.array),
        }

    def fill(self, batch: ModelBatch) -> dict[str, Tensor]:
        num_rows = len(batch.token_ids)
        self._token_ids[:num_rows] = batch.token_ids
        self._num_rows[0] = num_rows
        self._prompt_rows[:num_rows] = batch.is_prompt
        self._metadata.fill(
            batch.positions,
            batch.slot_mapping,
            batch.query_start,
            batch.seq_lens,
            batch.block_tables,
        )
        return dict(self._tensors)


class _SampleInputs:
    """Input tensors of one bucket of the logits."""

    def __init__(self, max_samples: int) -> None:
        self._rows = np.zeros(max_samples, np.int32)
        self._num_samples = np.zeros(1, np.int32)
        self._prompt_samples = np.zeros(max_samples, np.int32)
        self._tensors = {
            "sample_rows": Tensor.from_numpy(self._rows),
            "num_samples": Tensor.from_numpy(self._num_samples),
            "prompt_samples": Tensor.from_numpy(self._prompt_samples),
        }

    def fill(self, rows: np.ndarray, is_prompt: np.ndarray) -> dict[str, Tensor]:
        self._rows[: len(rows)] = rows
        self._num_samples[0] = len(rows)
        self._prompt_samples[: len(rows)] = is_prompt[rows]
        return self._tensors


def _smallest_bucket(buckets: Iterable[int], size: int) -> int:
    return min(bucket for bucket in buckets if bucket >= size)
