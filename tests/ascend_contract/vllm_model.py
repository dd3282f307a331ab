"""What vLLM-MindSpore 0.5.1 does with a network of MindSpore Transformers, in our own words.

It cannot be installed beside this project's versions, so this is written from reading its
model_executor/models/mf_models/mindformers.py and config.py, and models/attention_mask.py.
docs/vllm_mindspore.md has the facts. Left out are several ranks, quantization, graphs, the warm-up
and the sampler.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, mutable, ops
from mindspore.nn.utils import no_init_parameters

from mindformers_glm.backends.runner import ModelBatch

_MASKED = -10000.0
_PREFILL_MASK_SIZE = 128
_CHUNK_MASK_WIDTH = 8192


def make_config(
    folder: Path, dtype: Any, weights_dtype: str, max_model_len: int, block_size: int
) -> Any:
    """What it hands `AutoModel.from_config` for one rank.

    Args:
        dtype: MindSpore's, of `--dtype`.
        weights_dtype: bfloat16, or float16 on a 300I, whatever `dtype` and the folder say.
    """
    from mindformers.tools.register import MindFormerConfig

    sizes = dict.fromkeys(("model_parallel", "pipeline_stage", "data_parallel"), 1)
    types = ("layernorm_compute_dtype", "rotary_dtype", "params_dtype", "router_dense_type")
    return MindFormerConfig(
        run_mode="predict",
        use_legacy=False,
        load_ckpt_format="safetensors",
        auto_trans_ckpt=True,
        parallel={"parallel_mode": "STAND_ALONE"},
        parallel_config={**sizes, "vocab_emb_dp": False},
        load_checkpoint=str(folder),
        pretrained_model_dir=str(folder),
        model={
            "model_config": {
                "compute_dtype": dtype,
                "max_position_embeddings": max_model_len,
                "block_size": block_size,
                **dict.fromkeys(types, weights_dtype),
                "pre_process": True,
                "post_process": True,
                "offset": 0,
                "use_fused_mla": False,
            }
        },
    )


class VllmModel:
    """Its `MindFormersForCausalLM` with one network, in eager mode. The calls are numbered."""

    def __init__(self, config: Any, cache_shape: Sequence[int], num_layers: int) -> None:
        from mindformers import AutoModel
        from mindformers.core.context.build_context import build_mf_context

        build_mf_context(config)
        with no_init_parameters():
            self.network = AutoModel.from_config(config)  # 1
            self.network.model.return_hidden_states = True  # 2
        self.lm_head = self.network.model.output_layer  # 3
        self.dtype = self.network.compute_dtype  # 4
        self.quant_config = getattr(self.network, "quant_config", None)
        self.network.set_dynamic_inputs()  # 5
        self.lm_head.set_inputs(Tensor(shape=[None, None], dtype=self.dtype))
        self._folder = config.load_checkpoint
        self._block_size, self._max_blocks = cache_shape[1], cache_shape[0]
        self._caches = [
            mutable([ops.zeros(tuple(cache_shape), self.dtype) for _ in range(num_layers)])
            for _ in range(2)
        ]

    def load_weights(self) -> None:
        self.network.load_weights(self._folder)  # 6

    def compute_logits(self, batch: ModelBatch) -> np.ndarray:
        """float32 [len(batch.sample_rows), vocab_size]."""
        query_lens = np.diff(batch.query_start).astype(np.int32)
        cached_lens = (batch.seq_lens - query_lens).astype(np.int32)
        is_prefill = cached_lens.max() == 0
        inputs = self._make_inputs(batch, query_lens, cached_lens, is_prefill)
        if is_prefill:
            self._set_flags(True)
        hidden_states = self.network(**inputs)  # 8
        if is_prefill:
            self._set_flags(False)
        rows = ops.gather(hidden_states, Tensor(batch.sample_rows.astype(np.int32)), 0)
        logits = self.lm_head(rows)
        return logits.view(-1, logits.shape[-1]).astype(ms.float32).asnumpy()

    def _set_flags(self, is_prefill: bool) -> None:
        self.network.add_flags_custom_mcore(is_prefill=is_prefill)  # 7
        if hasattr(self.network, "add_flags_chunked"):
            self.network.add_flags_chunked(is_chunked=False)

    def _make_inputs(
        self,
        batch: ModelBatch,
        query_lens: np.ndarray,
        cached_lens: np.ndarray,
        is_prefill: bool,
    ) -> dict[str, Any]:
        tables = np.zeros((len(batch.block_tables), self._max_blocks), np.int32)
        for row, table in zip(tables, batch.block_tables, strict=True):
            row[: len(table)] = table
        key_cache, value_cache = self._caches
        return {
            "input_ids": Tensor(batch.token_ids, ms.int32),
            "batch_valid_length": ms.from_numpy(batch.seq_lens),
            "block_tables": Tensor(tables),
            "slot_mapping": Tensor(batch.slot_mapping),
            "positions": Tensor(batch.positions, ms.int32),
            "q_seq_lens": Tensor(query_lens, ms.int32),
            "attention_mask": self._make_mask(batch.positions, query_lens, is_prefill),
            "key_cache": key_cache,
            "value_cache": value_cache,
            "context_lens_tensor": ms.from_numpy(cached_lens),
            "attn_padding_idx": None,
            "attn_unpadding_idx": None,
            "ffn_padding_idx": None,
            "ffn_unpadding_idx": None,
        }

    def _make_mask(self, positions: np.ndarray, query_lens: np.ndarray, is_prefill: bool) -> Tensor:
        if is_prefill:
            value = 1.0 if self.dtype == ms.bfloat16 else _MASKED
            size = (_PREFILL_MASK_SIZE, _PREFILL_MASK_SIZE)
            mask = np.triu(np.full(size, value, np.float32), 1)
        elif query_lens.max() > 1:  # rows of a triangle, whatever the lengths are
            is_hidden = np.arange(_CHUNK_MASK_WIDTH)[None] > positions[:, None]
            mask = np.where(is_hidden, _MASKED, 0.0).astype(np.float32)
        else:
            mask = np.zeros((1, 1), np.float32)
        return Tensor(mask, self.dtype)
