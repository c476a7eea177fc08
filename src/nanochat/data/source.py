"""One source of items, be it files, a hub data set or the Primer: a stream that can be left and entered again."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

from nanochat.common import UserError
from nanochat.data import files

Item = TypeVar("Item")
Parse = Callable[[object, str], Item | None]  # of a value and where it stands; None: to be passed over


class Source(Generic[Item]):
    """All items of one source, in a fixed order.

    Attributes:
        name: as the user gave it.
        size: bytes on disk; None where that is not known.
        endless: whether it never ends.
        keep: which items are asked for; at first all.
        position: how many of the `size` bytes are read.
    """

    size: int | None = None
    endless = False
    position = 0

    def __init__(self, name: str) -> None:
        self.name = name
        self.keep: Callable[[Item], bool] = lambda item: True

    def items(self, start: Any = None) -> Iterator[Item]:
        """The items from `start` on, a `place` of before; from the beginning if None.

        Raises:
            UserError: it can't be read or is wrongly shaped; the message names the file and the line.
        """
        raise NotImplementedError

    def place(self) -> Any:
        """Where the item begins that comes after the one given last: plain data for JSON."""
        raise NotImplementedError

    def identity(self) -> Any:
        """Plain data that differs where the items may differ."""
        return self.name


class Generated(Source[Item]):
    """Items that a function makes up, always the same ones, without end."""

    endless = True

    def __init__(self, name: str, seed: int, start: Callable[[], Iterator[Item]]) -> None:
        super().__init__(name)
        self._seed, self._start = seed, start
        self._given = 0

    def items(self, start: Any = None) -> Iterator[Item]:
        self._given = start or 0
        for item in islice(self._start(), self._given, None):
            self._given += 1
            yield item

    def place(self) -> Any:
        return self._given

    def identity(self) -> Any:
        return [self.name, self._seed]


class Files(Source[Item]):
    """The records of files, one file after the other."""

    def __init__(self, name: str, paths: Sequence[Path], key: files.Key, parse: Parse[Item]) -> None:
        super().__init__(name)
        self._paths, self._key, self._parse = paths, key, parse
        self._sizes = [path.stat().st_size for path in paths]
        self.size = sum(self._sizes)
        self._place = (0, files.BEGINNING)

    def items(self, start: Any = None) -> Iterator[Item]:
        first, place = start or (0, files.BEGINNING)
        some = start is not None
        for number in range(first, len(self._paths)):
            before = sum(self._sizes[:number])
            for record in files.read(self._paths[number], self._key, place):
                item = self._parse(record.value, record.where)
                if item is not None:
                    self._place, self.position = (number, record.next), before + record.position
                    some = True
                    yield item
            place = files.BEGINNING
        if not some:
            raise UserError(f"{self.name} holds nothing but blanks.")

    def place(self) -> Any:
        return self._place

    def identity(self) -> Any:
        states = ((path.resolve(), path.stat()) for path in self._paths)
        return [[str(path), state.st_size, state.st_mtime_ns] for path, state in states]


class HubRows(Source[Item]):
    """The rows of a hub data set's train split, streamed: nothing is kept on disk."""

    def __init__(self, name: str, key: files.Key, parse: Parse[Item]) -> None:
        super().__init__(name)
        self._key, self._parse = key, parse
        self._rows: Any = None
        self._row = 0

    def items(self, start: Any = None) -> Iterator[Item]:
        try:
            from datasets import load_dataset
        except ImportError:
            raise UserError(
                f"There is no file or folder {self.name}; to read it from the hub: pip install 'nanochat[hub]'."
            ) from None
        self._row = 0
        try:
            self._rows = load_dataset(self.name, split="train", streaming=True)
            if start is not None:
                self._row, state = start
                self._rows.load_state_dict(state)  # jumps to the right file of the data set, skips rows within it
            for record in self._rows:
                self._row += 1
                where = f"{self.name} row {self._row}"
                item = self._parse(files.value_of(record, self._key, where), where)
                if item is not None:
                    yield item
        except UserError:
            raise
        except Exception as error:  # whatever the network and that library raise: there is no common type
            raise UserError(
                f"There is no file or folder {self.name}, and as a hub data set it can't be read after row {self._row}"
                f" ({type(error).__name__}: {error}): is the name right, and the hub reachable?"
            ) from error
        if not self._row:
            raise UserError(f"The hub data set {self.name} has no rows.")

    def place(self) -> Any:
        return [self._row, self._rows.state_dict()]
