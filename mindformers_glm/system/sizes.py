"""Sizes in bytes as people read them."""

_UNITS = ((2**30, "GB"), (2**20, "MB"), (2**10, "KB"))


def format_bytes(num_bytes: int) -> str:
    """Write a size: "17.5 GB", below that "410.0 MB"; units count in 1024, as in settings."""
    for size, unit in _UNITS:
        if num_bytes >= size:
            return f"{num_bytes / size:.1f} {unit}"
    return f"{num_bytes} bytes"
