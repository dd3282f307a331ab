"""Export upstream's network as MindIR with Ascend's real operators; prints one line a graph.

    export_steps.py FOLDER DTYPE[,DTYPE] [FAULT]

Exporting stops before kernels are chosen, so it works on a CPU, and what the operators check of
types and shapes is checked. FAULT is a mistake that has to be found.
"""

import os
import sys
from pathlib import Path
from typing import Any

os.environ |= {"RUN_MODE": "predict"}

import mindspore as ms
import numpy as np
from mindformers.parallel_core.inference.tensor_parallel import layers
from mindspore import Tensor, mint, mutable

from mindformers_glm.backends.ascend.footprint import kv_block_shape
from mindformers_glm.backends.ascend.network import AscendGlmForCausalLM, make_upstream_config
from mindformers_glm.backends.ascend.step_inputs import UpstreamStep, make_upstream_step
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
    ),
    "decode": ModelBatch(
        token_ids=np.zeros(2, np.int32),
        positions=np.int32([5, 4]),
        slot_mapping=np.int32([5, 20]),
        query_start=np.int32([0, 1, 2]),
        seq_lens=np.int32([6, 5]),
        block_tables=[[0], [1]],
        sample_rows=np.int32([0, 1]),
    ),
}


def main(folder: str, dtypes: str, fault: str = "") -> None:
    ms.set_context(mode=ms.GRAPH_MODE, jit_config={"jit_level": "O0", "infer_boost": "on"})
    layers.mint = replaced(mint, empty=zeros, zeros=zeros)
    for dtype in dtypes.split(","):
        for name in STEPS:
            try:
                _export(Path(folder), dtype, name, fault)
                print(f"{dtype} {name}: exported", flush=True)
            except Exception as problem:
                print(f"{dtype} {name}: {type(problem).__name__} {str(problem)[:200]!r}")


def _export(folder: Path, dtype: str, name: str, fault: str) -> None:
    config = GlmConfig.from_hf(folder)
    settings = RunnerSettings.for_config(
        config, dtype, params_dtype=dtype, compute_dtype=dtype, block_size=16, max_model_len=128
    )
    network = AscendGlmForCausalLM(make_upstream_config(config, settings))
    step = make_upstream_step(STEPS[name], dtype)
    network.add_flags_custom_mcore(is_prefill=step.is_prefill)
    inputs = _inputs(network, step, config, settings)
    if fault == "mask in float32":
        inputs[8] = inputs[8].astype(ms.float32)
    file = folder / f"{name}_{dtype}"
    ms.export(network, *inputs, file_name=str(file), file_format="MINDIR")


def _inputs(
    network: AscendGlmForCausalLM, step: UpstreamStep, config: GlmConfig, settings: RunnerSettings
) -> list[Any]:
    def caches() -> object:
        shape = (NUM_BLOCKS, *kv_block_shape(config, settings))
        empty = Tensor(np.zeros(shape, np.float32)).astype(network.compute_dtype)
        return mutable([empty] * config.num_hidden_layers)

    return [
        Tensor(step.input_ids),
        None,
        Tensor(step.positions),
        Tensor(step.batch_valid_length),
        Tensor(step.context_lens_tensor),
        Tensor(step.q_seq_lens),
        Tensor(step.block_tables),
        Tensor(step.slot_mapping),
        Tensor(step.attention_mask),
        *[None] * 5,
        caches(),
        caches(),
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
