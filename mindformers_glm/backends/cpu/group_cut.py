"""Where ranks cut the columns of activations whose groups share a scale."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GroupCut:
    """Where the columns of one rank lie in groups that share a scale.

    num_first, num_last: own columns in the first and the last group.
    before, behind: columns of others up to the borders of these.
    groups: of rank 0 the first and the last group, of rank 1, ...
    """

    num_first: int
    num_last: int
    before: int
    behind: int
    groups: tuple[int, ...]

    @classmethod
    def of(cls, own: Sequence[range], wide: Sequence[range], rank: int, group: int) -> "GroupCut":
        groups = [column // group for cut in own for column in (cut.start, cut.stop - 1)]
        first, last = groups[2 * rank : 2 * rank + 2]
        return cls(
            num_first=min((first + 1) * group, own[rank].stop) - own[rank].start,
            num_last=own[rank].stop - max(last * group, own[rank].start),
            before=own[rank].start - wide[rank].start,
            behind=wide[rank].stop - own[rank].stop,
            groups=tuple(groups),
        )

    def as_operand(self) -> np.ndarray:
        """As csrc/exchange.cc takes it."""
        numbers = (self.num_first, self.num_last, self.before, self.behind, *self.groups)
        return np.array(numbers, np.int32)
