"""The runner on static graphs: one graph per row bucket, compiled on first use."""

import threading
from collections.abc import Iterable

import numpy as np
from mindspore import Tensor
from mindspore.nn import Cell

from mindformers_glm.backends.cpu import library
from mindformers_glm.backends.cpu.attn_metadata import AttnMetadataBuffer
from mindformers_glm.backends.cpu.footprint import count_kv_block_bytes, count_workspace_bytes
from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.models.inference_model import GlmInferenceModel
from mindformers_glm.models.pretrained_model import build_network
from mindformers_glm.system.interrupts import delay_interrupts, interrupts_raise
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.packed_cache import PackedCacheSettings

# Rows a graph is compiled for; a step takes the smallest that holds it. Operators touch only the
# real rows, so a larger bucket costs addresses and not time, and one for all steps up to 512 rows
# is compiled once: 40 layers take seconds.
ROW_BUCKETS = (512, 2048, 8192)
# Ranks of a split model send each other every row of the bucket: half of them for a graph more.
SPLIT_ROW_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
# Rows of logits at a time: 32 x 151,552 float32 are 19 MB. So many are computed in the graph of the
# last layers, which saves a call, more of them in a graph of their own.
MAX_SAMPLES = 32
# MindSpore 2.7.1 waits for ever where two threads run graphs at the same time.
_ONE_AT_A_TIME = threading.Lock()
_PHASE = "increment"  # one of the two in which MindSpore runs compiled graphs directly


def create_runner(
    config: GlmConfig,
    checkpoint: Checkpoint,
    settings: RunnerSettings,
    packed_cache: PackedCacheSettings | None = None,
) -> "CpuModelRunner":
    """Build the network that the registry names, load the weights and wrap it in a runner."""
    network = build_network(config, settings)
    network.load_weights(checkpoint, packed_cache)
    library.leave_team()  # the steps may run on another thread
    return CpuModelRunner(network)


class CpuModelRunner:
    """Runs batches on the CPU network (protocol: backends/runner.py)."""

    def __init__(self, network: GlmInferenceModel) -> None:
        settings = network.settings
        self.network = network
        self.group = network.group
        self.vocab_size = network.glm_config.vocab_size
        self.weights_bytes = network.num_weight_bytes()
        self.mapped_weight_bytes = network.mapped_weight_bytes
        self.read_weight_bytes = network.read_weight_bytes
        self.workspace_bytes = count_workspace_bytes(network.glm_config, settings)
        self.kv_block_bytes = count_kv_block_bytes(network.glm_config, settings)
        self._graphs = network.graphs
        # MindSpore's names for the graphs compiled so far, by cell and shapes of the inputs.
        self._compiled: dict[tuple[object, ...], str] = {}
        row_buckets = ROW_BUCKETS if self.group.size == 1 else SPLIT_ROW_BUCKETS
        self._row_inputs = {
            rows: _RowInputs(rows, settings)
            for rows in _buckets_up_to(settings.max_num_batched_tokens, row_buckets)
        }
        sample_buckets = {min(rows, MAX_SAMPLES) for rows in self._row_inputs}
        self._sample_inputs = {samples: _SampleInputs(samples) for samples in sample_buckets}

    def allocate_kv_cache(self, num_blocks: int) -> None:
        """Reserve the KV cache; once, before the first step."""
        self.network.allocate_kv_cache(num_blocks)

    def close(self) -> None:
        """Give the memory of weights and KV cache back; MindSpore's graphs keep the Parameters."""
        for array in (*self.network.weight_arrays().values(), *self.network.kv_cache_arrays()):
            library.give_back(array)

    def execute(self, batch: ModelBatch) -> np.ndarray:
        """Run one step; see backends/runner.py.

        Returns:
            float32 [len(batch.sample_rows), vocab_size].
        """
        with _ONE_AT_A_TIME, interrupts_raise():
            return self._execute(batch)

    def _execute(self, batch: ModelBatch) -> np.ndarray:
        library.keep_team()
        bucket = _smallest_bucket(self._row_inputs, len(batch.token_ids))
        hidden_states, *inputs = self._row_inputs[bucket].fill(batch)  # token ids at first
        *graphs, last = self._graphs.hidden_states
        for graph in graphs:
            hidden_states = self._run(graph, hidden_states, *inputs)
        # Ranks send each other all rows of logits that a graph makes, also those of a prompt.
        is_cheap = self.group.size == 1 or bucket <= MAX_SAMPLES
        if is_cheap and len(batch.sample_rows) <= MAX_SAMPLES:
            samples = self._sample_inputs[min(bucket, MAX_SAMPLES)].fill(batch.sample_rows)
            logits = self._run(self._graphs.last_with_logits, hidden_states, *inputs, *samples)
            return logits.asnumpy()[: len(batch.sample_rows)]
        hidden_states = self._run(last, hidden_states, *inputs)
        hidden_states.asnumpy()  # waits for the graph: the next step reuses the input buffers
        return self._compute_logits(hidden_states, batch.sample_rows)

    def _compute_logits(self, hidden_states: Tensor, sample_rows: np.ndarray) -> np.ndarray:
        logits = np.empty((len(sample_rows), self.vocab_size), np.float32)
        for start in range(0, len(sample_rows), MAX_SAMPLES):
            rows = sample_rows[start : start + MAX_SAMPLES]
            samples = self._sample_inputs[_smallest_bucket(self._sample_inputs, len(rows))]
            part = self._run(self._graphs.logits, hidden_states, *samples.fill(rows))
            logits[start : start + len(rows)] = part.asnumpy()[: len(rows)]
        return logits

    def _run(self, cell: Cell, *tensors: Tensor) -> Tensor:
        """Call a cell, which compiles its graph for new shapes.

        A cell in the phase "increment" runs the graph that `phase_cache` names and looks at nothing
        else; in any other phase it prepares for compiling first, in time that grows with the
        number of its parts.
        """
        signature = (cell, *(tensor.shape for tensor in tensors))
        if signature in self._compiled:
            cell.phase_cache[_PHASE] = self._compiled[signature]
            return cell(*tensors)
        cell.phase = _PHASE
        cell.phase_cache.pop(_PHASE, None)
        with delay_interrupts():
            output = cell(*tensors)
        self._compiled[signature] = cell.phase_cache[_PHASE]
        return output


class _RowInputs:
    """Input tensors of one row bucket; they share memory with NumPy arrays refilled every step."""

    def __init__(self, max_rows: int, settings: RunnerSettings) -> None:
        self._token_ids = np.zeros(max_rows, np.int32)
        self._num_rows = np.zeros(1, np.int32)
        self._metadata = AttnMetadataBuffer(
            max_rows, min(max_rows, settings.max_num_seqs), settings.max_blocks_per_seq
        )
        self._tensors = (
            Tensor.from_numpy(self._token_ids),
            Tensor.from_numpy(self._num_rows),
            Tensor.from_numpy(self._metadata.array),
        )

    def fill(self, batch: ModelBatch) -> tuple[Tensor, ...]:
        num_rows = len(batch.token_ids)
        self._token_ids[:num_rows] = batch.token_ids
        self._num_rows[0] = num_rows
        self._metadata.fill(
            batch.positions,
            batch.slot_mapping,
            batch.query_start,
            batch.seq_lens,
            batch.block_tables,
        )
        return self._tensors


class _SampleInputs:
    """Input tensors of one bucket of the logits head."""

    def __init__(self, max_samples: int) -> None:
        self._rows = np.zeros(max_samples, np.int32)
        self._num_samples = np.zeros(1, np.int32)
        self._tensors = (Tensor.from_numpy(self._rows), Tensor.from_numpy(self._num_samples))

    def fill(self, rows: np.ndarray) -> tuple[Tensor, ...]:
        self._rows[: len(rows)] = rows
        self._num_samples[0] = len(rows)
        return self._tensors


def _buckets_up_to(largest: int, buckets: tuple[int, ...]) -> tuple[int, ...]:
    """The buckets below `largest`, and `largest` itself."""
    return (*(size for size in buckets if size < largest), largest)


def _smallest_bucket(buckets: Iterable[int], size: int) -> int:
    return min(bucket for bucket in buckets if bucket >= size)
