"""Atlas 300I Duo (310P): its operators take weights and KV cache in the format FRACTAL_NZ.

What upstream does there while it loads weights and makes its own KV cache (mindformers 1.7.0:
tensor_parallel/layers.py `format_to_nz`, generation/text_generator.py `_generate_kv_cache`) is done
here, since this backend does both itself. Nobody has seen it run on such a card.
"""

from typing import Any

from mindformers.models.utils import format_type
from mindformers.parallel_core.inference.tensor_parallel.layers import LinearBase
from mindformers.version_control import is_310p
from mindspore import Tensor, mint, ops

from mindformers_glm.backends.ascend.network import AscendGlmForCausalLM


def reformat_weights(network: AscendGlmForCausalLM) -> None:
    """Have the linear layers' weights in the card's format; behind each loading."""
    if not is_310p():
        return
    for cell in network.model.cells():
        _reformat(cell, network.model.embedding.word_embeddings.weight)


def _reformat(cell: Any, table: Any) -> None:
    # A tied output layer has the embedding's weight, which is gathered from, in the plain format.
    if isinstance(cell, LinearBase) and cell.weight is not table:
        cell.format_to_nz(cell.weight)
    for inner in cell.cells():
        _reformat(inner, table)


def make_empty_cache(shape: tuple[int, int, int, int], dtype: Any) -> Tensor:
    """Zeros on the device, [num_blocks, block_size, KV heads, head_dim] of one layer.

    A 310P wants the last two axes as one, in its format.
    """
    if not is_310p():
        return mint.zeros(shape, dtype=dtype)
    num_blocks, block_size, num_heads, head_dim = shape
    plain = mint.zeros((num_blocks, block_size, num_heads * head_dim), dtype=dtype)
    return ops.auto_generate.format_cast(plain, format_type["nz"])
