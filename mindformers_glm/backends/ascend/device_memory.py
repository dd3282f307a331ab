"""The memory of this rank's card."""

import mindspore as ms
from mindspore import hal, ops, runtime

# Of the card, for what no count of ours knows: HCCL's buffers (HCCL_BUFFSIZE, 200 MB for each
# direction and group unless set) and the operators' own workspace. Not measured on a card.
_SPARE_BYTES = 2**30


def free_bytes() -> int | None:
    """Bytes that this process can still take; None where MindSpore does not know.

    What MindSpore's memory pool has reserved and nobody uses is counted as free.
    """
    # The properties are 0 until something has run on the card (mindspore 2.7.1, hal/device.py).
    ops.zeros((1,), ms.float16).asnumpy()
    properties = hal.get_device_properties(0, "Ascend")  # the number is not read: it is the own one
    if not properties.total_memory:
        return None
    pooled = runtime.memory_reserved() - runtime.memory_allocated()
    return max(int(properties.free_memory) + int(pooled) - _SPARE_BYTES, 0)
