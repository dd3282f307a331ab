"""Upstream's parallel state as one of several ranks has it, in a process of its own."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from mindformers.parallel_core.inference import parallel_state

_STATE = [name for name in vars(parallel_state) if name.isupper() and name.startswith("_")]


@contextmanager
def as_rank(size: int, rank: int) -> Iterator[None]:
    """Let upstream's networks be built for a rank; nothing that ranks exchange works."""
    with ExitStack() as stack:
        for name in _STATE:  # put back afterwards
            stack.enter_context(mock.patch.object(parallel_state, name, None))
        found = {"_is_initialized": True, "get_rank": rank, "get_group_size": size}
        for name, value in found.items():
            stack.enter_context(mock.patch.object(parallel_state, name, lambda v=value: v))
        stack.enter_context(mock.patch.object(parallel_state, "create_group"))
        parallel_state.initialize_model_parallel(tensor_model_parallel_size=size)
        yield
