"""A device without memory left: one sentence for what MindSpore raises."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from mindformers_glm.core.errors import MemoryBudgetError

# "Device(id:0) memory isn't enough and alloc failed, kernel name: ..., alloc size: 1048576B." and
# others of mindspore 2.7.1 (its libraries' texts; nobody has seen them come from a card).
_IS_FULL = re.compile(r"(?i)memory (isn't|is not|not) enough|out of memory|alloc\w* [\w ]*failed")


@contextmanager
def explain_full_memory(task: str) -> Iterator[None]:
    """Say what did not fit, and what to do.

    Args:
        task: what the block does, "the KV cache of 40 blocks".
    Raises:
        MemoryBudgetError: MindSpore found no memory for it.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        found = next((line for line in str(problem).splitlines() if _IS_FULL.search(line)), None)
        if found is None:
            raise
        raise MemoryBudgetError(
            f"The device has no memory left for {task} ({found.strip()}): lower max_device_memory "
            "to leave more room, or max_num_batched_tokens or max_model_len, or raise "
            "model_parallel."
        ) from problem
