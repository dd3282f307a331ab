"""The engine's runner on upstream's network."""

from dataclasses import asdict

import mindspore as ms
import numpy as np
from mindformers.tools.utils import is_pynative
from mindspore import Tensor, mutable, ops
from mindspore.nn.utils import no_init_parameters

from mindformers_glm.backends.ascend.footprint import count_memory, kv_block_shape
from mindformers_glm.backends.ascend.network import AscendGlmForCausalLM, make_upstream_config
from mindformers_glm.backends.ascend.parameters import find_targets
from mindformers_glm.backends.ascend.processor import allocate_cache
from mindformers_glm.backends.ascend.split import upstream_part
from mindformers_glm.backends.ascend.step_inputs import UpstreamStep, make_upstream_step
from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from mindformers_glm.weights.checkpoint import Checkpoint
from mindformers_glm.weights.loader import load_weights
from mindformers_glm.weights.rules import build_rules


class AscendModelRunner:
    """A loaded network (protocol: backends/runner.py).

    Raises:
        CheckpointError: a file is damaged, or tensors are missing, unknown or of wrong shape.
    """

    mapped_weight_bytes = 0
    compile_s = 0.0

    def __init__(self, config: GlmConfig, checkpoint: Checkpoint, settings: RunnerSettings) -> None:
        checkpoint.cuts(config, upstream_part(settings))  # told before anything is built
        with no_init_parameters():
            self.network = AscendGlmForCausalLM(make_upstream_config(config, settings))
        self._config, self._settings = config, settings
        self.load_weights(checkpoint)
        need = count_memory(config, settings)
        self.weights_bytes = need.weights_bytes
        self.workspace_bytes, self.kv_block_bytes = need.workspace_bytes, need.kv_block_bytes
        self.vocab_size = config.vocab_size
        self._is_prefill: bool | None = None  # as the network is set
        if not is_pynative():
            # A graph for prompts and one for all other steps, for any number of rows.
            self.network.set_dynamic_inputs()
            rows = Tensor(shape=[None, None], dtype=self.network.compute_dtype)
            self.network.model.output_layer.set_inputs(rows)

    def load_weights(self, checkpoint: Checkpoint) -> None:
        """Fill the Parameters, again with other weights."""
        cuts = checkpoint.cuts(self._config, upstream_part(self._settings))
        rules = build_rules(self._config, cuts)
        self.read_weight_bytes = load_weights(checkpoint, rules, find_targets(self.network, rules))

    def allocate_kv_cache(self, num_blocks: int) -> None:
        """Reserve the KV cache in device memory; once, before the first step."""
        shape, dtype = kv_block_shape(self._config, self._settings), self.network.compute_dtype
        num_layers = self._config.num_hidden_layers
        self._key_cache, self._value_cache = (
            mutable([allocate_cache(num_blocks, shape, dtype) for _ in range(num_layers)])
            for _ in range(2)
        )

    def execute(self, batch: ModelBatch) -> np.ndarray:
        """Run one step; see backends/runner.py.

        Returns:
            float32 [len(batch.sample_rows), vocab_size].
        """
        step = make_upstream_step(batch, self._settings.compute_dtype)
        self._choose_graph(step.is_prefill)
        hidden_states = self.network(**self._as_tensors(step))
        if len(batch.sample_rows) == 0:
            hidden_states.asnumpy()  # waits: the next step may come from another thread
            return np.empty((0, self.vocab_size), np.float32)
        rows = ops.gather(hidden_states, Tensor(batch.sample_rows.astype(np.int32)), 0)
        logits = self.network.model.output_layer(rows).astype(ms.float32)
        return logits.asnumpy().reshape(-1, self.vocab_size)

    def close(self) -> None:
        """Give the memory of weights and KV cache back; nothing runs afterwards."""
        self._key_cache = self._value_cache = None
        for parameter in self.network.get_parameters():
            parameter.set_data(Tensor(shape=(0,), dtype=parameter.dtype), slice_shape=True)

    def _choose_graph(self, is_prefill: bool) -> None:
        """Set upstream's flags, and the phase by which MindSpore finds the compiled graph."""
        if is_prefill == self._is_prefill:
            return
        self._is_prefill = is_prefill
        self.network.add_flags_custom_mcore(is_prefill=is_prefill)
        if not is_pynative():
            self.network.phase = "prefill" if is_prefill else "increment"

    def _as_tensors(self, step: UpstreamStep) -> dict[str, object]:
        arrays = asdict(step)
        del arrays["is_prefill"]
        mask = arrays.pop("attention_mask")
        return {
            **{name: Tensor(np.ascontiguousarray(array)) for name, array in arrays.items()},
            "attention_mask": Tensor(mask, self.network.compute_dtype),
            "key_cache": self._key_cache,
            "value_cache": self._value_cache,
        }
