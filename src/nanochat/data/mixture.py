"""Several sources as one stream: in turn, or so that their shares are in the proportion of weights.

In turn: one item of each; a source that ends falls out. By weight: always the source that is furthest behind its share
(sizes are counted: tokens in a store, not documents). Sources that end before the others begin again, so that the
proportions hold to the end, which comes when every source was given whole at least once, or by the caller's limit.

Which item comes next depends on nothing but the items before: not on timing, threads or interruptions.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from functools import partial
from typing import Any, Generic, TypeVar

from nanochat.common import UserError
from nanochat.data.source import Item, Source

T = TypeVar("T")


@dataclasses.dataclass
class _Chunk(Generic[T]):
    number: int  # of the pass over the source it belongs to, from 0
    place: Any  # where the source stood before it
    begin: int  # and its position then
    end: int
    size: int
    prepared: Callable[[], Sequence[T]]
    is_last: bool = False  # of its pass


class Lane(Generic[Item, T]):
    """One source's items, prepared chunk by chunk; with a pool several chunks ahead, in the same order.

    Args:
        source: where the items come from.
        prepare: makes of a chunk of items what is given out, one for each.
        size_of: of an item; a chunk ends with the item that makes `chunk_size` full.
        repeats: whether to begin again at the end of the source.
        pool: prepares chunks; without one, each is prepared when its turn comes.
        ahead: how many chunks, or as much as that, may lie prepared: memory does not grow with the source.
        state: of such a lane before, with the same `chunk_size`; goes on from there.
    """

    def __init__(
        self,
        source: Source[Item],
        prepare: Callable[[list[Item]], Sequence[T]],
        size_of: Callable[[Item], int],
        repeats: bool,
        *,
        chunk_size: int,
        pool: Executor | None = None,
        ahead: int = 0,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.source = source
        self._prepare, self._size_of, self._repeats = prepare, size_of, repeats
        self._chunk_size, self._pool, self._ahead = chunk_size, pool, ahead
        self._state = state or {"pass": 0, "place": None, "begin": 0, "given": 0}
        self._unread = self._chunks(self._state["pass"], self._state["place"], self._state["begin"])
        self._pending: deque[_Chunk[T]] = deque()
        self._current: _Chunk[T] | None = None
        self._items: Sequence[T] = ()
        self._given = 0

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        while self._given == len(self._items):
            self._next_chunk()
        self._given += 1
        return self._items[self._given - 1]

    def state(self) -> dict[str, Any]:
        """Plain data for JSON that another lane can go on from."""
        if (chunk := self._current) is None:
            return self._state
        return {"pass": chunk.number, "place": chunk.place, "begin": chunk.begin, "given": self._given}

    @property
    def passes(self) -> float:
        """How often the source was given, with the part of the pass in progress where its size is known."""
        if (chunk := self._current) is None:
            return 0.0
        share = self._given / max(1, len(self._items))
        if chunk.is_last and share == 1:
            return chunk.number + 1.0
        done = (chunk.begin + share * (chunk.end - chunk.begin)) / self.source.size if self.source.size else 0.0
        return chunk.number + min(done, 1.0)

    def _next_chunk(self) -> None:
        if not self._pending and not self._read():
            raise StopIteration
        resumed = self._current is None
        self._current = chunk = self._pending.popleft()
        while self._pool and self._has_room() and self._read():
            pass
        self._items = chunk.prepared()
        self._given = self._state["given"] if resumed else 0

    def _has_room(self) -> bool:
        pending = self._pending
        return len(pending) < self._ahead and sum(chunk.size for chunk in pending) < self._ahead * self._chunk_size

    def _read(self) -> bool:
        chunk = next(self._unread, None)
        if chunk is not None:
            self._pending.append(chunk)
        return chunk is not None

    def _chunks(self, number: int, place: Any, begin: int) -> Iterator[_Chunk[T]]:
        while True:
            items: list[Item] = []
            size = 0
            full: _Chunk[T] | None = None  # held back until it is known whether it is the last
            from_beginning = place is None
            for item in filter(self.source.keep, self.source.items(place)):
                if full is not None:
                    yield full
                    full = None
                items.append(item)
                size += self._size_of(item)
                if size >= self._chunk_size:
                    full = self._chunk(number, place, begin, items, size)
                    items, size = [], 0
                    place, begin = self.source.place(), full.end
            if items:
                full = self._chunk(number, place, begin, items, size)
            if full is not None:
                full.is_last = True
                yield full
            elif from_beginning and self._repeats:
                raise UserError(f"All of {self.source.name} is held out, nothing is left to learn from: give more.")
            if not self._repeats:
                return
            number, place, begin = number + 1, None, 0

    def _chunk(self, number: int, place: Any, begin: int, items: list[Item], size: int) -> _Chunk[T]:
        prepared = self._pool.submit(self._prepare, items).result if self._pool else partial(self._prepare, items)
        return _Chunk(number, place, begin, self.source.position, size, prepared)


class Mixture(Generic[T]):
    """The items of several lanes as one stream, in turn or by weight: see the top of this file.

    Args:
        lanes: at least one.
        weights: one for each lane, or None: in turn.
        size_of: what is to be in the proportion of the weights.
        state: of such a mixture before; its lanes were given theirs.
    """

    def __init__(
        self,
        lanes: Sequence[Lane[Any, T]],
        weights: Sequence[float] | None,
        size_of: Callable[[T], int],
        state: dict[str, Any] | None = None,
    ) -> None:
        self.lanes, self._weights, self._size_of = lanes, weights, size_of
        state = state or {"last": -1, "taken": [0] * len(lanes)}
        self._last: int = state["last"]
        self.taken: list[int] = state["taken"]  # size of what each lane gave

    def state(self) -> dict[str, Any]:
        """Plain data for JSON that another mixture and its lanes can go on from."""
        return {"last": self._last, "taken": self.taken, "lanes": [lane.state() for lane in self.lanes]}

    def __iter__(self) -> Iterator[T]:
        alive = list(range(len(self.lanes)))
        while alive and not self._is_complete():
            self._last = chosen = self._choose(alive)
            try:
                item = next(self.lanes[chosen])
            except StopIteration:
                alive.remove(chosen)
                continue
            self.taken[chosen] += max(1, self._size_of(item))
            yield item

    @property
    def share(self) -> float | None:
        """How much of it is given, from 0 to 1, where that is known."""
        if self._weights:
            return min((min(lane.passes, 1.0) for lane in self._finite()), default=None)
        sizes = [lane.source.size for lane in self.lanes]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            return None
        return sum(lane.passes * size for lane, size in zip(self.lanes, known)) / max(1, sum(known))

    def _choose(self, alive: list[int]) -> int:
        if self._weights is None:
            return next((lane for lane in alive if lane > self._last), alive[0])
        weights = self._weights
        return min(alive, key=lambda lane: self.taken[lane] / weights[lane])

    def _is_complete(self) -> bool:
        finite = self._finite() if self._weights else []
        return bool(finite) and all(lane.passes >= 1 for lane in finite)

    def _finite(self) -> list[Lane[Any, T]]:
        return [lane for lane in self.lanes if not lane.source.endless]
