"""The memory of this rank's device."""

from mindspore import hal


def free_bytes() -> int | None:
    """Bytes that nobody has taken yet; None where MindSpore does not know."""
    properties = hal.get_device_properties(0, "Ascend")
    # 0 before anything has run on the device (mindspore 2.7.1).
    return int(properties.free_memory) or None
