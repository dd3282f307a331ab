"""Which processor a card has, and how its operators want tensors to lie in memory.

An Atlas 300I Duo multiplies matrices and reads a KV cache in fractals of 16 x 16 numbers, for which
upstream casts both (mindformers 1.7.0: `LinearBase.format_to_nz`, `_generate_kv_cache` in
generation/text_generator.py). Nobody has seen our calls run on one.
"""

from mindspore import Tensor, ops
from mindspore._c_expression import MSContext

from mindformers_glm.backends.ascend.support import ATLAS_300I

_FRACTAL_NZ = 29  # ACL_FORMAT_FRACTAL_NZ of CANN's aclFormat
# Upstream's linear layers; norms and the embedding stay as they are.
_MATRICES = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "output_layer")


def processor_name() -> str:
    """What MindSpore calls it, such as ascend910b; empty on a machine without one."""
    return str(MSContext.get_instance().get_ascend_soc_version())


def as_weight(parameter_name: str, tensor: Tensor) -> Tensor:
    """A Parameter's numbers as the layer's operator reads them."""
    layer, _, kind = parameter_name.rpartition(".")
    is_matrix = kind == "weight" and layer.endswith(_MATRICES)
    return _as_fractals(tensor) if is_matrix and _wants_fractals() else tensor


def allocate_cache(num_blocks: int, block_shape: tuple[int, int, int], dtype: object) -> Tensor:
    """Zeros for the keys or values of a layer.

    Args:
        block_shape: block_size, KV heads of this rank, head_dim.
    Returns:
        [num_blocks, block_size, num_heads, head_dim]; in fractals the last two are one axis.
    """
    block_size, num_heads, head_dim = block_shape
    if _wants_fractals():
        return _as_fractals(ops.zeros((num_blocks, block_size, num_heads * head_dim), dtype))
    return ops.zeros((num_blocks, *block_shape), dtype)


def _wants_fractals() -> bool:
    return processor_name() == ATLAS_300I


def _as_fractals(tensor: Tensor) -> Tensor:
    """The same numbers in another order; the shape that Python sees stays."""
    return ops.auto_generate.format_cast(tensor, _FRACTAL_NZ)
