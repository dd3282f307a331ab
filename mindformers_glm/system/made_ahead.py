"""A series of results of which the next ones are made while one is used."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_MOST_THREADS = 4


def made_ahead(make: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield make(item) for each item, in order; an error comes where its result would.

    Threads make the results, which helps where `make` spends its time in NumPy. Of a few items, or
    on one processor, there are none.
    """
    rest = iter(items)
    first = list(islice(rest, 2))
    num_threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    if len(first) < 2 or num_threads < 2:
        yield from (make(item) for series in (first, rest) for item in series)
        return
    with ThreadPoolExecutor(num_threads) as pool:
        under_way: deque[Future[_Result]] = deque()
        try:
            for series in (first, rest):
                for item in series:
                    under_way.append(pool.submit(make, item))
                    if len(under_way) > num_threads:
                        yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()
