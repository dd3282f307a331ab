"""Puts the references in the place of Ascend's operators in MindSpore Transformers, for a while."""

import os
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import mindspore as ms
import numpy as np
from mindformers.parallel_core.inference.base_models.common.embeddings import (
    rotary_pos_embedding,
)
from mindformers.parallel_core.inference.base_models.common.embeddings.rope_utils import _ROPE_DICT
from mindformers.parallel_core.inference.tensor_parallel import layers
from mindformers.parallel_core.inference.transformer import flash_attention, norm
from mindspore import Tensor, mint, ops, runtime
from mindspore.ops import operations

from mindformers_glm.backends.ascend import integer_methods
from tests.ascend_contract import references


@contextmanager
def contract_references(world_group: str | None = None) -> Iterator[Counter[str]]:
    """Run upstream's network on a CPU, in PYNATIVE_MODE.

    Args:
        world_group: of several ranks, what upstream's eager all_reduce goes over instead.
    Yields:
        How often each reference was called.
    """
    calls: Counter[str] = Counter()
    made = _Operators(calls)
    generated = replaced(
        ops.auto_generate,
        ReshapeAndCache=made.ReshapeAndCache,
        PagedAttention=made.PagedAttention,
    )
    patches: list[Any] = [
        mock.patch.object(flash_attention, "ops", replaced(ops, auto_generate=generated)),
        mock.patch.object(flash_attention, "FlashAttentionScore", made.FlashAttentionScore),
        mock.patch.object(
            rotary_pos_embedding, "ops", replaced(ops, ApplyRotaryPosEmb=made.ApplyRotaryPosEmb)
        ),
        *made.watch(rotary_pos_embedding.RotaryEmbedding),
        mock.patch.object(flash_attention.FlashAttention, "construct", _check_lengths),
        mock.patch.object(norm, "P", replaced(operations, RmsNorm=made.RmsNorm)),
        mock.patch.object(layers, "mint", replaced(mint, empty=zeros, zeros=zeros)),
        mock.patch.object(integer_methods, "QuantV2", made.QuantV2),
        mock.patch.object(integer_methods, "DynamicQuantExt", made.DynamicQuantExt),
        mock.patch.object(integer_methods, "QuantBatchMatmul", made.QuantBatchMatmul),
        mock.patch.object(integer_methods, "WeightQuantBatchMatmul", made.WeightQuantBatchMatmul),
        # Upstream keeps rotary tables, and the operators in them, for the whole process.
        mock.patch.dict(_ROPE_DICT, clear=True),
        # A CPU has no streams to wait for, and no pool of device memory.
        mock.patch.object(runtime, "synchronize", return_value=None),
        mock.patch.object(runtime, "empty_cache", return_value=None),
    ]
    if world_group is not None:

        def all_reduce(x: Tensor, group: str | None = None) -> tuple[Tensor, None]:
            return ops.AllReduce(group=world_group)(x), None

        patches.append(mock.patch.object(layers, "all_reduce", all_reduce))
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        yield calls


@contextmanager
def in_pynative_mode(world_group: str | None = None) -> Iterator[Counter[str]]:
    """The same, and MindSpore and upstream's layers told that they run operator by operator."""
    told = {"ENFORCE_EAGER": "True", "RUN_MODE": "predict"}  # as the backend does
    # A reference waits for what it is given: without a queue that takes a fifth of the time.
    context = {"mode": ms.PYNATIVE_MODE, "pynative_synchronize": True}
    before = {name: ms.get_context(name) for name in context}
    with mock.patch.dict(os.environ, told), contract_references(world_group) as calls:
        ms.set_context(**context)
        yield calls
    ms.set_context(**before)


_attend = flash_attention.FlashAttention.construct


def _check_lengths(attention: Any, *arguments: Any, **given: Any) -> Tensor:
    """Upstream's attention; it hands on context_lens_tensor to other operators than GLM's."""
    names = ("batch_valid_length", "context_lens_tensor", "q_seq_lens")
    references.check_lengths(**{name: given[name].asnumpy() for name in names})
    return _attend(attention, *arguments, **given)


def replaced(module: Any, **names: Any) -> types.SimpleNamespace:
    """A module with some of its names replaced."""

    class Replaced(types.SimpleNamespace):
        def __getattr__(self, name: str) -> Any:
            return getattr(module, name)

    return Replaced(**names)


def zeros(size: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """Memory of any type; a CPU has no kernel for uninitialized and for bfloat16 zeros."""
    return Tensor(np.zeros(size, np.float32)).astype(dtype)


def _arrays(*tensors: Tensor | None) -> list[Any]:
    return [None if tensor is None else tensor.asnumpy() for tensor in tensors]


class _Operators:
    """The operators' classes as upstream makes and calls them."""

    def __init__(self, calls: Counter[str]) -> None:
        state = {"is_prefill": False}  # the step under way

        class ReshapeAndCache:
            def __call__(self, *tensors: Tensor) -> None:
                calls["ReshapeAndCache"] += 1
                key_cache, value_cache = tensors[2], tensors[3]
                arrays = [array.copy() for array in _arrays(*tensors)]
                references.reshape_and_cache(*arrays)
                for cache, written in ((key_cache, arrays[2]), (value_cache, arrays[3])):
                    cache.assign_value(Tensor(written, cache.dtype))

        class FlashAttentionScore:
            def __init__(
                self,
                head_num: int,
                keep_prob: float = 1.0,
                scale_value: float = 1.0,
                pre_tokens: int = 2**31 - 1,
                next_tokens: int = 2**31 - 1,
                inner_precise: int = 0,
                input_layout: str = "BSH",
                sparse_mode: int = 0,
            ) -> None:
                references.require(keep_prob == 1.0, "nothing is dropped in a prediction")
                self._attributes = {
                    "head_num": head_num,
                    "scale_value": scale_value,
                    "input_layout": input_layout,
                    "sparse_mode": sparse_mode,
                }

            def __call__(
                self,
                query: Tensor,
                key: Tensor,
                value: Tensor,
                real_shift: None = None,
                drop_mask: None = None,
                padding_mask: None = None,
                attn_mask: Tensor | None = None,
                prefix: None = None,
                actual_seq_qlen: Tensor | None = None,
                actual_seq_kvlen: Tensor | None = None,
            ) -> tuple[None, None, None, Tensor]:
                calls["FlashAttentionScore"] += 1
                unused = (real_shift, drop_mask, padding_mask, prefix)
                references.require(unused == (None,) * 4, "an input that is not known here")
                given = _arrays(query, key, value, attn_mask, actual_seq_qlen, actual_seq_kvlen)
                out = references.flash_attention_score(*given, **self._attributes)  # type: ignore[arg-type]
                return None, None, None, Tensor(out)

        class PagedAttention:
            def __init__(
                self,
                head_num: int,
                scale_value: float = 1.0,
                kv_head_num: int = 0,
                kv_cache_quant_mode: str = "DEFAULT",
                mask_mode: str = "MASK_DEFAULT",
                mla_v_dim: int = 0,
            ) -> None:
                modes = (kv_cache_quant_mode, mask_mode, mla_v_dim)
                references.require(modes == ("DEFAULT", "MASK_DEFAULT", 0), f"modes {modes}")
                self._attributes = {
                    "head_num": head_num,
                    "kv_head_num": kv_head_num,
                    "scale_value": scale_value,
                }

            def __call__(
                self,
                query: Tensor,
                key_cache: Tensor,
                value_cache: Tensor,
                block_tables: Tensor,
                context_lens: Tensor,
                antiquant_scale: None = None,
                antiquant_offset: None = None,
                attn_mask: Tensor | None = None,
                q_seq_lens: Tensor | None = None,
                alibi_mask: None = None,
            ) -> Tensor:
                calls["PagedAttention"] += 1
                unused = (antiquant_scale, antiquant_offset, alibi_mask)
                references.require(unused == (None,) * 3, "an input that is not known here")
                given = _arrays(
                    query, key_cache, value_cache, block_tables, context_lens, attn_mask, q_seq_lens
                )
                return Tensor(references.paged_attention(*given, **self._attributes))  # type: ignore[arg-type]

        class ApplyRotaryPosEmb:
            def __init__(self, cos_format: int = 0) -> None:
                self._cos_format = cos_format

            def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
                calls["ApplyRotaryPosEmb"] += 1
                rotated = references.apply_rotary_pos_emb(
                    *_arrays(*tensors), cos_format=self._cos_format, is_prefill=state["is_prefill"]
                )
                return tuple(map(Tensor, rotated))

        class RmsNorm:
            def __init__(self, epsilon: float = 1e-6) -> None:
                self._epsilon = epsilon

            def __call__(self, x: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
                calls["RmsNorm"] += 1
                y, scale = references.rms_norm(*_arrays(x, gamma), self._epsilon)
                return Tensor(y), Tensor(np.asarray(scale))

        class QuantV2:
            def __call__(
                self,
                x: Tensor,
                scale: Tensor,
                offset: Tensor,
                sqrt_mode: bool = False,
                rounding_mode: str = "ROUND",
                dst_type: Any = ms.int8,
            ) -> Tensor:
                calls["QuantV2"] += 1
                codes = references.quant_v2(
                    *_arrays(x, scale, offset),
                    sqrt_mode=sqrt_mode,
                    rounding_mode=rounding_mode,
                    dst_type=str(dst_type),
                )
                return Tensor(codes)

        class DynamicQuantExt:
            def __call__(self, x: Tensor, smooth_scales: None = None) -> tuple[Tensor, Tensor]:
                calls["DynamicQuantExt"] += 1
                codes, scale = references.dynamic_quant_ext(*_arrays(x, smooth_scales))
                return Tensor(codes), Tensor(scale)

        class QuantBatchMatmul:
            def __init__(
                self, transpose_x1: bool = False, transpose_x2: bool = False, dtype: Any = None
            ) -> None:
                self._attributes = {"transpose_x1": transpose_x1, "transpose_x2": transpose_x2}
                self._dtype = str(dtype)

            def __call__(self, *tensors: Tensor | None) -> Tensor:
                calls["QuantBatchMatmul"] += 1
                given = _arrays(*tensors)
                return Tensor(
                    references.quant_batch_matmul(*given, **self._attributes, dtype=self._dtype)
                )

        class WeightQuantBatchMatmul:
            def __init__(
                self,
                transpose_x: bool = False,
                transpose_weight: bool = False,
                antiquant_group_size: int = 0,
            ) -> None:
                self._attributes = {
                    "transpose_x": transpose_x,
                    "transpose_weight": transpose_weight,
                    "antiquant_group_size": antiquant_group_size,
                }

            def __call__(self, *tensors: Tensor | None) -> Tensor:
                calls["WeightQuantBatchMatmul"] += 1
                given = _arrays(*tensors)
                return Tensor(references.weight_quant_batch_matmul(*given, **self._attributes))

        self.WeightQuantBatchMatmul = WeightQuantBatchMatmul
        self.QuantV2 = QuantV2
        self.DynamicQuantExt = DynamicQuantExt
        self.QuantBatchMatmul = QuantBatchMatmul
        self._state = state
        self.ReshapeAndCache = ReshapeAndCache
        self.FlashAttentionScore = FlashAttentionScore
        self.PagedAttention = PagedAttention
        self.ApplyRotaryPosEmb = ApplyRotaryPosEmb
        self.RmsNorm = RmsNorm

    def watch(self, rotary: type) -> list[Any]:
        """Have the tables tell the operator whether they are whole or picked row by row."""

        def telling(name: str, is_prefill: bool) -> Any:
            original = getattr(rotary, name)

            def tell(embedding: Any, *arguments: Any) -> Any:
                self._state["is_prefill"] = is_prefill
                return original(embedding, *arguments)

            return mock.patch.object(rotary, name, tell)

        return [
            telling("get_cos_sin_for_prefill", True),
            telling("get_cos_sin_for_decode", False),
        ]
