"""Making what is needed next while what is at hand is used."""

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def look_ahead(make: Callable[[int], T], steps: Iterable[int]) -> Iterator[Iterator[T]]:
    """`make(step)` for each of the steps in order, made by another thread, one ahead of the one asked for.

    What `make` raises arrives when its step is asked for. The thread is gone when the block ends.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        yield _in_order(thread, make, steps)


def _in_order(thread: ThreadPoolExecutor, make: Callable[[int], T], steps: Iterable[int]) -> Iterator[T]:
    coming: deque[Future[T]] = deque()
    for step in steps:
        coming.append(thread.submit(make, step))
        if len(coming) == 2:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()
