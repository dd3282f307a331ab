"""Types that cached keys and values are kept in."""

from mindformers_glm.core.dtypes import DTYPE_BYTES

AUTO, INT8 = "auto", "int8"
# What a run may ask for; float16 wherever products are not float32 is what "auto" means.
KV_CACHE_DTYPES = (AUTO, *DTYPE_BYTES, INT8)
SCALE_DTYPE = "float32"


def count_head_bytes(head_dim: int, dtype: str, has_own_scale: bool) -> int:
    """Bytes of the keys, or of the values, of one head and token.

    Args:
        dtype: a float type, or int8.
        has_own_scale: whether an int8 head has a scale beside it.
    """
    if dtype != INT8:
        return head_dim * DTYPE_BYTES[dtype]
    return head_dim + has_own_scale * DTYPE_BYTES[SCALE_DTYPE]
