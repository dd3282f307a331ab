"""The references inside compiled graphs, for shapes that are fixed.

Each is an `ops.Custom` of a Python function, which gets copies of its inputs: what it should write
in place, MindSpore's own ScatterNdUpdate writes, and `ops.depend` orders what nothing else does.
With sizes left open MindSpore 2.7.1 cannot run them ("The pointer[value] is null"), so
`set_dynamic_inputs` does nothing here; test_export.py compiles with it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import mindspore as ms
import numpy as np
from mindformers.parallel_core.inference.base_models.common.embeddings.rope_utils import _ROPE_DICT
from mindformers.parallel_core.inference.transformer import flash_attention
from mindspore import Tensor, mint, nn, ops, runtime
from mindspore.ops import operations

from mindformers_glm.backends.ascend.network import AscendGlmForCausalLM
from tests.ascend_contract import references
from tests.ascend_contract.install import zeros


@contextmanager
def graph_references() -> Iterator[None]:
    """Run upstream's network on a CPU in GRAPH_MODE, each graph with the shapes of its first step.

    A graph parser reads upstream's code, so the names are replaced in MindSpore's own modules.
    """
    patches: list[Any] = [
        mock.patch.dict(os.environ, {"ENFORCE_EAGER": "False", "RUN_MODE": "predict"}),
        mock.patch.dict(_ROPE_DICT, clear=True),
        mock.patch.object(ops.auto_generate, "ReshapeAndCache", _ReshapeAndCache),
        mock.patch.object(ops.auto_generate, "PagedAttention", _PagedAttention),
        mock.patch.object(flash_attention, "FlashAttentionScore", _FlashAttentionScore),
        mock.patch.object(flash_attention.FlashAttention, "construct", _attend_in_order),
        mock.patch.object(ops, "ApplyRotaryPosEmb", _ApplyRotaryPosEmb),
        mock.patch.object(operations, "RmsNorm", _RmsNorm),
        mock.patch.object(mint, "empty", zeros),
        mock.patch.object(mint, "zeros", zeros),
        mock.patch.object(mint, "split", _split),
        mock.patch.object(ops, "move_to", _move_to),
        mock.patch.object(runtime, "synchronize", return_value=None),
        mock.patch.object(runtime, "empty_cache", return_value=None),
        mock.patch.object(AscendGlmForCausalLM, "set_dynamic_inputs", return_value=None),
        mock.patch.object(AscendGlmForCausalLM, "add_flags_custom_mcore", _set_flags),
    ]
    mode = ms.get_context("mode")
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        ms.set_context(mode=ms.GRAPH_MODE)
        yield
    ms.set_context(mode=mode)


_STEP = {"is_prefill": False}  # the step under way: ApplyRotaryPosEmb has to be told
_add_flags = AscendGlmForCausalLM.add_flags_custom_mcore


def _set_flags(network: AscendGlmForCausalLM, is_prefill: bool) -> None:
    _STEP["is_prefill"] = is_prefill
    _add_flags(network, is_prefill)


def _as_operator(function: Callable[..., Any], like: int | tuple[int, ...] = 0) -> ops.Custom:
    """An operator of a graph; its outputs have the shapes and types of those of its inputs."""

    def infer(*inputs: Any) -> Any:
        return tuple(inputs[i] for i in like) if isinstance(like, tuple) else inputs[like]

    return ops.Custom(function, infer, infer, func_type="pyfunc")


class _ReshapeAndCache(nn.Cell):
    def __init__(self) -> None:
        super().__init__()

        def check(key: Any, value: Any, keys: Any, values: Any, slots: Any) -> Any:
            references.reshape_and_cache(key, value, keys.copy(), values.copy(), slots)
            return slots

        self.check = _as_operator(check, 4)
        self.scatter = ops.ScatterNdUpdate()

    def construct(self, key, value, key_cache, value_cache, slot_mapping):  # type: ignore[no-untyped-def]
        slots = self.check(key, value, key_cache, value_cache, slot_mapping)
        block_size = key_cache.shape[1]
        places = ops.stack((slots // block_size, slots % block_size), -1)
        shape = (-1, key_cache.shape[2], key_cache.shape[3])
        keys = self.scatter(key_cache, places, key.reshape(shape))
        values = self.scatter(value_cache, places, value.reshape(shape))
        return keys, values


class _FlashAttentionScore(nn.Cell):
    def __init__(
        self,
        head_num: int,
        keep_prob: float,
        scale_value: float,
        pre_tokens: int,
        next_tokens: int,
        inner_precise: int,
        input_layout: str,
        sparse_mode: int,
    ) -> None:
        super().__init__()

        def attend(*tensors: Any) -> Any:
            return references.flash_attention_score(
                *tensors,
                head_num=head_num,
                scale_value=scale_value,
                input_layout=input_layout,
                sparse_mode=sparse_mode,
            )

        self.attend = _as_operator(attend)

    def construct(  # type: ignore[no-untyped-def]
        self, query, key, value, shift, drop, padding, mask, prefix, query_lens, key_lens
    ):
        return None, None, None, self.attend(query, key, value, mask, query_lens, key_lens)


class _PagedAttention(nn.Cell):
    def __init__(self, head_num: int, scale_value: float, kv_head_num: int, mla_v_dim: int) -> None:
        super().__init__()

        def attend(*tensors: Any) -> Any:
            return references.paged_attention(
                *tensors, head_num=head_num, scale_value=scale_value, kv_head_num=kv_head_num
            )

        self.attend = _as_operator(attend)

    def construct(  # type: ignore[no-untyped-def]
        self, query, keys, values, tables, lengths, scale, offset, mask, query_lens
    ):
        return self.attend(query, keys, values, tables, lengths, mask, query_lens)


class _ApplyRotaryPosEmb(nn.Cell):
    def __init__(self, cos_format: int) -> None:
        super().__init__()

        def rotate(*tensors: Any) -> Any:
            return references.apply_rotary_pos_emb(*tensors, cos_format=cos_format, **_STEP)

        self.rotate = _as_operator(rotate, (0, 1))

    def construct(self, query, key, cos, sin, lengths):  # type: ignore[no-untyped-def]
        return self.rotate(query, key, cos, sin, lengths)


class _RmsNorm(nn.Cell):
    def __init__(self, epsilon: float) -> None:
        super().__init__()

        def norm(x: Any, gamma: Any) -> Any:
            return references.rms_norm(np.asarray(x), np.asarray(gamma), epsilon)[0]

        self.norm = _as_operator(norm)

    def construct(self, x, gamma):  # type: ignore[no-untyped-def]
        return (self.norm(x, gamma),)


def _attend_in_order(  # type: ignore[no-untyped-def]
    self,
    query,
    key,
    value,
    slot_mapping=None,
    block_tables=None,
    batch_valid_length=None,
    context_lens_tensor=None,
    q_seq_lens=None,
    actual_seq_qlen=None,
    actual_seq_kvlen=None,
    attn_mask=None,
    padding_mask=None,
    prefix=None,
    key_cache=None,
    value_cache=None,
):
    """Upstream's attention, whose query waits until the cache is written."""
    written = self.reshape_and_cache(key, value, key_cache, value_cache, slot_mapping)
    query = ops.depend(query, written)
    if self.is_prefill:
        return self.flash_attention(
            query,
            key,
            value,
            None,
            None,
            padding_mask,
            attn_mask,
            prefix,
            actual_seq_qlen,
            actual_seq_kvlen,
        )[3]
    return self.paged_attention(
        query,
        key_cache,
        value_cache,
        block_tables,
        batch_valid_length,
        None,
        None,
        attn_mask,
        q_seq_lens,
    )


def _split(tensor, sizes, dim=-1):  # type: ignore[no-untyped-def]
    """mint.split along the last axis, which has no kernel on a CPU."""
    parts, start = (), 0
    for size in sizes:
        parts = (*parts, tensor[..., start : start + size])
        start = start + size
    return parts


def _move_to(tensor: Tensor, *arguments: Any) -> Tensor:
    return tensor
