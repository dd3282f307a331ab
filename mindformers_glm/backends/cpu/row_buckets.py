"""The sizes that graphs are compiled for; a step takes the smallest that holds it.

Operators touch only the real rows, so a larger bucket costs addresses and not time.
"""

from collections.abc import Iterable

# One for all steps up to 512 rows is compiled once: 40 layers take seconds.
_ROW_BUCKETS = (512, 2048, 8192)
# Ranks of a split model send each other every row of the bucket: half of them for a graph more.
_SPLIT_ROW_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
# Rows of logits at a time: 32 x 151,552 float32 are 19 MB. So many are computed in the graph of the
# last layers, which saves a call, more of them in a graph of their own.
MAX_SAMPLES = 32


def row_buckets(max_num_batched_tokens: int, num_ranks: int) -> tuple[int, ...]:
    """Rows of the graphs for steps of up to so many tokens, ascending."""
    buckets = _ROW_BUCKETS if num_ranks == 1 else _SPLIT_ROW_BUCKETS
    largest = max_num_batched_tokens
    return (*(size for size in buckets if size < largest), largest)


def smallest_bucket(buckets: Iterable[int], size: int) -> int:
    """The smallest that holds `size`."""
    return min(bucket for bucket in buckets if bucket >= size)
