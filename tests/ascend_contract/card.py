"""A machine that has a card, as far as the package can see: the references compute in its place."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from mindformers_glm.backends.ascend import context
from mindformers_glm.backends.ascend.backend import AscendBackend
from tests.ascend_contract.install import in_pynative_mode

_MEMORY = 2**32


@contextmanager
def card_of_references(world_group: str | None = None) -> Iterator[Counter[str]]:
    """`device_target="Ascend"` with mode 1, as on a machine with a card of 4 GiB.

    Args:
        world_group: see contract_references.
    Yields:
        How often each reference was called.
    """
    with in_pynative_mode(world_group) as calls, ExitStack() as stack:
        for patch in (
            mock.patch.object(AscendBackend, "is_present", return_value=True),
            mock.patch.object(AscendBackend, "find_obstacle", return_value=""),
            mock.patch.object(AscendBackend, "available_memory", return_value=_MEMORY),
            mock.patch.object(AscendBackend, "dtypes", ("float32", "float16")),  # the references'
            mock.patch.object(context, "take_card"),
        ):
            stack.enter_context(patch)
        yield calls
