"""The engine's runner on upstream's network.

Nobody has seen it run on a card. What follows from upstream's source alone: the weights are set as
upstream sets them (`set_data(from_numpy(...))`), so each goes to the device when it is first used
or before; tensors of one piece are views of the checkpoint's pages until then, the others (query,
key and value; what a rank takes columns of) are copies in the host's memory.
"""

import time
from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindformers.tools.utils import is_pynative
from mindspore import Tensor, mutable, ops, runtime
from mindspore.nn.utils import no_init_parameters

from mindformers_glm.backends.ascend import nz_format
from mindformers_glm.backends.ascend.footprint import MAX_SAMPLES, count_memory, kv_block_shape
from mindformers_glm.backends.ascend.full_memory import explain_full_memory
from mindformers_glm.backends.ascend.network import AscendGlmForCausalLM, make_upstream_config
from mindformers_glm.backends.ascend.parameters import fill_network, list_rules
from mindformers_glm.backends.ascend.quantization import read_quantization
from mindformers_glm.backends.ascend.step_inputs import UpstreamStep, make_upstream_step
from mindformers_glm.backends.ascend.upstream_log import quieten_upstream_log
from mindformers_glm.backends.forking import check_not_forked
from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.system.interrupts import delay_interrupts, interrupts_raise
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.rule_checks import check_rules

# Upstream's names of the network's two graphs. MindSpore looks no further than at such a phase once
# its graph is compiled, so the inputs' sizes must be left open.
_PREFILL, _OTHER_STEPS = "prefill", "increment"
_LOGITS = "logits"


class AscendModelRunner:
    """A loaded network (protocol: backends/runner.py).

    In GRAPH_MODE it has three graphs, each compiled by the first step that takes it: of prompts, of
    all other steps, and of the output layer, which sampled rows alone reach.

    Raises:
        CheckpointError: a file is damaged, or tensors are missing, unknown or of wrong shape.
        UnsupportedError: a layer is quantized in a way that the network has no method for.
        MemoryBudgetError: the device is full.
    """

    mapped_weight_bytes = 0

    def __init__(self, config: GlmConfig, checkpoint: Checkpoint, settings: RunnerSettings) -> None:
        check_not_forked()
        quieten_upstream_log()
        # What cannot be cut or multiplied so is told before anything is built.
        rules = list_rules(config, settings.tensor_parallel, checkpoint)
        check_rules(rules, checkpoint)
        quantization = read_quantization(rules, checkpoint, settings.compute_dtype)
        with no_init_parameters():
            upstream_config = make_upstream_config(config, settings)
            self.network = AscendGlmForCausalLM(upstream_config, quantization)
        self._config, self._settings = config, settings
        self.load_weights(checkpoint)
        need = count_memory(config, settings)
        self.weights_bytes = need.weights_bytes
        self.workspace_bytes, self.kv_block_bytes = need.workspace_bytes, need.kv_block_bytes
        self.vocab_size = config.vocab_size
        self.compile_s = 0.0
        self._has_graphs = not is_pynative()
        self._compiled: set[str] = set()
        self._phase = ""  # what the network's flags are set for
        if self._has_graphs:
            self.network.set_dynamic_inputs()
            rows = Tensor(shape=[None, None], dtype=self.network.compute_dtype)
            self.network.model.output_layer.set_inputs(rows)

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Fill the Parameters, again with other weights."""
        rank = self._settings.tensor_parallel
        self.read_weight_bytes = fill_network(self.network, self._config, rank, checkpoint)

    def allocate_kv_cache(self, num_blocks: int) -> None:
        """Reserve the KV cache in device memory; once, before the first step."""
        shape = (num_blocks, *kv_block_shape(self._config, self._settings))
        num_layers = self._config.num_hidden_layers
        with explain_full_memory(f"the KV cache of {num_blocks} blocks"):
            self._key_cache, self._value_cache = (
                mutable(
                    [
                        nz_format.make_empty_cache(shape, self.network.compute_dtype)
                        for _ in range(num_layers)
                    ]
                )
                for _ in range(2)
            )
            runtime.synchronize()  # a lack of memory shows here and not in a later step

    def execute(self, batch: ModelBatch) -> np.ndarray:
        """Run one step; see backends/runner.py.

        The host waits for the device once, for the logits; for those of many rows once for each
        MAX_SAMPLES.

        Returns:
            float32 [len(batch.sample_rows), vocab_size].
        """
        check_not_forked()
        logits = np.empty((len(batch.sample_rows), self.vocab_size), np.float32)
        if len(batch.token_ids) == 0:  # there is nothing to warm up but graphs, which want rows
            return logits
        with interrupts_raise(), explain_full_memory(f"a step of {len(batch.token_ids)} tokens"):
            step = make_upstream_step(batch, self._settings.compute_dtype)
            hidden_states = self._call_network(step)
            for start in range(0, len(logits), MAX_SAMPLES):
                part = slice(start, start + MAX_SAMPLES)
                logits[part] = self._compute_logits(hidden_states, batch.sample_rows[part])
            if len(logits) == 0:
                # Waits: the next step may come from another thread.
                _pick(hidden_states, np.zeros(1)).asnumpy()
        return logits

    def _compute_logits(self, hidden_states: Tensor, sample_rows: np.ndarray) -> np.ndarray:
        picked = _pick(hidden_states, sample_rows)
        logits = self._call(_LOGITS, lambda: self.network.model.output_layer(picked))
        return logits.astype(ms.float32).asnumpy().reshape(-1, self.vocab_size)

    def close(self) -> None:
        """Give the memory of weights and KV cache back; nothing runs afterwards."""
        self._key_cache = self._value_cache = None
        for parameter in self.network.get_parameters():
            parameter.set_data(Tensor(shape=(0,), dtype=parameter.dtype), slice_shape=True)
        runtime.empty_cache()  # from MindSpore's pool to the device, for other processes

    def _call_network(self, step: UpstreamStep) -> Tensor:
        phase = _PREFILL if step.is_prefill else _OTHER_STEPS
        if phase != self._phase and phase not in self._compiled:
            # A graph keeps the flags that it was compiled with.
            self.network.add_flags_custom_mcore(is_prefill=step.is_prefill)
        if self._has_graphs:
            self.network.phase = phase
        self._phase = phase
        inputs = self._as_tensors(step)
        return self._call(phase, lambda: self.network(**inputs))

    def _call(self, graph: str, run: Callable[[], Tensor]) -> Tensor:
        """Call a part of the network; the first call of a graph returns when it is compiled."""
        if not self._has_graphs or graph in self._compiled:
            return run()
        with delay_interrupts():
            started_s = time.perf_counter()
            output = run()
            self.compile_s += time.perf_counter() - started_s
        self._compiled.add(graph)
        return output

    def _as_tensors(self, step: UpstreamStep) -> dict[str, object]:
        arrays = {name: value for name, value in vars(step).items() if name != "is_prefill"}
        return {
            **{name: Tensor(np.ascontiguousarray(array)) for name, array in arrays.items()},
            "key_cache": self._key_cache,
            "value_cache": self._value_cache,
        }


def _pick(hidden_states: Tensor, rows: np.ndarray) -> Tensor:
    return ops.gather(hidden_states, Tensor(rows.astype(np.int32)), 0)
