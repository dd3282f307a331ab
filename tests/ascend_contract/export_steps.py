"""Export upstream's network as MindIR with Ascend's real operators; prints a line for each graph.

    export_steps.py FOLDER...      (named as their dialects)

Exporting stops before kernels are chosen, so it works on a CPU, and what the operators check of
types and shapes is checked. Every one of FAULTS is a call that they refuse. Others they let through
and the references refuse: int64 lengths, slots and tables; another 16-bit type in the mask or the
cache, a float32 mask of PagedAttention, a cache of 3 axes.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"RUN_MODE": "predict"}

import mindspore as ms
import numpy as np
from mindformers.parallel_core.inference.tensor_parallel import layers as parallel_layers
from mindspore import Tensor, mint, mutable

from mindformers_glm.backends.ascend.footprint import kv_block_shape
from mindformers_glm.backends.ascend.network import AscendGlmForCausalLM, make_upstream_config
from mindformers_glm.backends.ascend.step_inputs import make_upstream_step
from mindformers_glm.backends.runner import ModelBatch
from mindformers_glm.config.glm_config import GlmConfig
from mindformers_glm.config.runner_settings import RunnerSettings
from tests.ascend_contract.install import replaced, zeros

NUM_BLOCKS = 8
STEPS = {
    "prefill": ModelBatch(
        token_ids=np.zeros(9, np.int32),
        positions=np.int32([0, 1, 2, 3, 4, 0, 1, 2, 3]),
        slot_mapping=np.arange(9, dtype=np.int32),
        query_start=np.int32([0, 5, 9]),
        seq_lens=np.int32([5, 4]),
        block_tables=[[0], [1]],
        sample_rows=np.int32([4]),
        is_prompt=np.ones(9, np.int32),
    ),
    "decode": ModelBatch(
        token_ids=np.zeros(2, np.int32),
        positions=np.int32([5, 4]),
        slot_mapping=np.int32([5, 20]),
        query_start=np.int32([0, 1, 2]),
        seq_lens=np.int32([6, 5]),
        block_tables=[[0], [1]],
        sample_rows=np.int32([0, 1]),
        is_prompt=np.zeros(2, np.int32),
    ),
    "chunks": ModelBatch(
        token_ids=np.zeros(4, np.int32),
        positions=np.int32([16, 17, 18, 4]),
        slot_mapping=np.int32([48, 49, 50, 20]),
        query_start=np.int32([0, 3, 4]),
        seq_lens=np.int32([19, 5]),
        block_tables=[[0, 3], [1]],
        sample_rows=np.int32([2, 3]),
        is_prompt=np.int32([1, 1, 1, 0]),
    ),
}
_LENGTHS, _TABLES, _SLOTS, _MASK = 3, 6, 7, 8  # places of `construct`
Inputs = list[Any]


def _change(place: int, change: Callable[[Any], Any]) -> Callable[[Inputs], Inputs]:
    return lambda inputs: [change(x) if i == place else x for i, x in enumerate(inputs)]


# By step: calls in bfloat16 that must be refused.
FAULTS: dict[str, dict[str, Callable[[Inputs], Inputs]]] = {
    "prefill": {
        "mask in float32": _change(_MASK, lambda mask: mask.astype(ms.float32)),
        "slots in float32": _change(_SLOTS, lambda slots: slots.astype(ms.float32)),
        "no positions, keys or values": lambda inputs: inputs[:3],
    },
    "chunks": {
        "tables in float32": _change(_TABLES, lambda tables: tables.astype(ms.float32)),
        "lengths in bfloat16": _change(_LENGTHS, lambda lengths: lengths.astype(ms.bfloat16)),
    },
}


class _Exporter:
    """Upstream's network of one dialect in one type."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self._config = GlmConfig.from_hf(folder)
        self._settings = RunnerSettings.for_config(
            self._config,
            dtype,
            params_dtype=dtype,
            compute_dtype=dtype,
            block_size=16,
            max_model_len=128,
        )
        self._folder, self._dtype = folder, dtype

    def export_step(
        self,
        name: str,
        change: Callable[[Inputs], Inputs] = lambda inputs: inputs,
        is_dynamic: bool = False,
    ) -> None:
        network = AscendGlmForCausalLM(make_upstream_config(self._config, self._settings))
        step = make_upstream_step(STEPS[name], self._dtype)
        network.add_flags_custom_mcore(is_prefill=step.is_prefill)
        arrays = (
            *(step.batch_valid_length, step.context_lens_tensor, step.q_seq_lens),
            *(step.block_tables, step.slot_mapping, step.attention_mask),
        )
        caches = [self._make_cache(network) for _ in range(2)]
        inputs = [Tensor(step.input_ids), None, Tensor(step.positions), *map(Tensor, arrays)]
        if is_dynamic:
            network.set_dynamic_inputs()
        self._export(network, *change([*inputs, *[None] * 5, *caches]))

    def export_logits(self, is_dynamic: bool = False) -> None:
        """The runner's second call: gathered rows through the output layer."""
        network = AscendGlmForCausalLM(make_upstream_config(self._config, self._settings))
        layer, dtype = network.model.output_layer, network.compute_dtype
        if is_dynamic:
            layer.set_inputs(Tensor(shape=[None, None], dtype=dtype))
        self._export(layer, zeros((3, self._config.hidden_size), dtype))

    def _make_cache(self, network: AscendGlmForCausalLM) -> Any:
        shape = (NUM_BLOCKS, *kv_block_shape(self._config, self._settings))
        layers = range(self._config.num_hidden_layers)
        return mutable([zeros(shape, network.compute_dtype) for _ in layers])

    def _export(self, network: Any, *inputs: Any) -> None:
        ms.export(network, *inputs, file_name=str(self._folder / "graph"), file_format="MINDIR")


def _try(name: str, export: Callable[..., None], *arguments: Any, **options: Any) -> None:
    try:
        export(*arguments, **options)
        print(f"{name} = exported", flush=True)
    except Exception as problem:
        print(f"{name} = {type(problem).__name__} {str(problem)[:200]!r}", flush=True)


def main(folders: list[Path]) -> None:
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0", "infer_boost": "on"})
    parallel_layers.mint = replaced(mint, empty=zeros, zeros=zeros)
    for folder in folders:
        is_first = folder == folders[0]
        for dtype in ("bfloat16", "float16"):
            exporter = _Exporter(folder, dtype)
            for name in STEPS if is_first else ("prefill", "decode"):
                _try(f"{folder.name} {dtype} {name}", exporter.export_step, name)
            if is_first:
                _try(f"{folder.name} {dtype} logits", exporter.export_logits)
    exporter = _Exporter(folders[0], "bfloat16")
    for name in STEPS:
        _try(f"any size {name}", exporter.export_step, name, is_dynamic=True)
    _try("any size logits", exporter.export_logits, is_dynamic=True)
    for name, faults in FAULTS.items():
        for fault, change in faults.items():
            _try(f"wrong {name}: {fault}", exporter.export_step, name, change)
    _try("wrong prefill: all in float32", _Exporter(folders[0], "float32").export_step, "prefill")


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]])
