"""The Cell classes that layer specs are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class SequenceClass(Protocol):
    """Makes one Cell that runs operators one after the other."""

    def __call__(self, cells: Sequence[Any], inputs: Sequence[str]) -> Any:
        """See backends/cpu/program.py."""
        ...

    def count_nodes(self, cells: Sequence[Any]) -> int:
        """How many nodes of MindSpore's graph these become."""
        ...


@dataclass(frozen=True)
class Operators:
    """One class per operator, as one device implements them, and `sequence`, which runs them.

    How each is built is fixed by the layers; see backends/cpu/fused_layers.py. What an
    operator works on besides the result of the one before has a name, which
    models/network_graph.py gives to the sequence.
    """

    embedding: type
    rms_norm: type
    rms_norm_add: type
    residual_add: type
    linear: type
    norm_linear: type
    norm_gated_linear: type
    paged_attention: type
    gather_rows: type
    all_reduce: type
    gather_logits: type
    sequence: SequenceClass
