"""Batches of rows from a token store. A batch is a pure function of (seed, step), whatever was asked before.

So training goes on from any step with nothing else to remember, and `world` ranks that ask for their slices of
a batch see together what one would see alone.

Shapes: `B` rows of a global batch, `T` tokens of a row, `N` tokens of the store, `R` rows of an epoch.
"""

import abc
import dataclasses
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nanochat.common import UserError
from nanochat.data.packing import pack
from nanochat.data.store import TokenStore

IGNORED = -100  # the label that a loss passes over, as everywhere in PyTorch


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows to train on.

    Attributes:
        input_ids: (B, T) int64.
        labels: (B, T) int64, already shifted: what is to be predicted after `input_ids[:, t]`, -100 for nothing.
        position_ids: (B, T) int64, from 0 in each conversation or document, beyond which attention must not reach;
            None where a row is one stretch of text.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    position_ids: torch.Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`; a GPU fetches it when it comes to it, and is not waited for."""
        if device.type == "cuda":
            return self._map(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
        return self._map(lambda tensor: tensor.to(device))

    def split(self, rows: int) -> Iterator["Batch"]:
        """Micro-batches of at most `rows` rows, in order."""
        for start in range(0, len(self.input_ids), rows):
            yield self._map(operator.itemgetter(slice(start, start + rows)))

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        positions = self.position_ids
        return Batch(
            function(self.input_ids), function(self.labels), None if positions is None else function(positions)
        )


class _Batches(abc.ABC):
    """What both kinds share: an endless sequence of rows, epoch after epoch, each in an order of its own."""

    n_rows: int  # R, the same in every epoch

    def __init__(self, store: TokenStore, batch_size: int, seq_len: int, seed: int) -> None:
        if batch_size < 1 or seq_len < 1 or seed < 0:
            raise UserError(
                "The batch size and the sequence length must be positive and the seed not negative,"
                f" got {batch_size}, {seq_len} and {seed}."
            )
        self.store, self.batch_size, self.seq_len, self.seed = store, batch_size, seq_len, seed
        self._cached: tuple[int, NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        """Steps until every row was seen; the last of them may begin the next epoch."""
        return -(-self.n_rows // self.batch_size)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of `step`, from 0; of `world` ranks, the slice of B/world rows that is `rank`'s."""
        if self.batch_size % world:
            raise UserError(
                f"A batch of {self.batch_size} rows can't be shared evenly by {world} processes;"
                f" choose a multiple of {world}."
            )
        share = self.batch_size // world
        first = step * self.batch_size + rank * share
        epochs, places = np.divmod(np.arange(first, first + share), self.n_rows)
        return self._rows(
            [
                (int(epoch), int(row))
                for epoch in np.unique(epochs)
                for row in self._order(int(epoch))[places[epochs == epoch]]
            ]
        )

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self._cached is None or self._cached[0] != epoch:
            self._cached = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.n_rows)
        return self._cached[1]

    @abc.abstractmethod
    def _rows(self, rows: list[tuple[int, int]]) -> Batch:
        """The rows named by (epoch, row in 0..R-1)."""

    @abc.abstractmethod
    def validation_batches(self, count: int) -> Iterator[Batch]:
        """The first `count` batches in an order that depends on nothing but the store, each token in one only.

        There are fewer if the store ends before, and the last one has fewer rows if they don't fill it.
        """


class StreamBatches(_Batches):
    """Rows cut from the stream of all tokens, for pretraining; a row may hold several documents.

    Rows overlap by one token: the last target of one is the first input of the next. Each epoch cuts from another
    start, round the end of the stream, so every token is a target once per epoch, but for a rest of less
    than T tokens, another one in each epoch. With `within_documents`, positions start anew at every document.

    Raises:
        UserError: the store has no more than T tokens.
    """

    def __init__(
        self, store: TokenStore, batch_size: int, seq_len: int, seed: int, *, within_documents: bool = False
    ) -> None:
        super().__init__(store, batch_size, seq_len, seed)
        self._within_documents = within_documents
        n = store.meta.tokens
        if n <= seq_len:
            raise UserError(
                f"{store.folder} holds {n} tokens, but one row takes {seq_len + 1}:"
                " give more text or a shorter --seq-len."
            )
        self.n_rows = n // seq_len

    def _rows(self, rows: list[tuple[int, int]]) -> Batch:
        return self._cut(np.array([self._start(epoch) + row * self.seq_len for epoch, row in rows]))

    def _start(self, epoch: int) -> int:
        return int(np.random.default_rng([self.seed, epoch, 1]).integers(self.store.meta.tokens))

    def _cut(self, starts: NDArray[np.int64]) -> Batch:
        places = (starts[:, None] + np.arange(self.seq_len + 1)) % self.store.meta.tokens
        rows = torch.from_numpy(self.store.tokens[places].astype(np.int64))  # (B, T + 1)
        return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), self._positions(places[:, :-1]))

    def _positions(self, places: NDArray[np.int64]) -> torch.Tensor | None:
        """How far each of some places (B, T) is into its document, as far as that is in its row."""
        if not self._within_documents:
            return None
        starts = self.store.offsets[np.searchsorted(self.store.offsets, places, side="right") - 1]
        return torch.from_numpy(np.minimum(places - starts, np.arange(self.seq_len)))

    def validation_batches(self, count: int) -> Iterator[Batch]:
        starts = np.arange((self.store.meta.tokens - 1) // self.seq_len) * self.seq_len  # none round the end
        for step in range(min(count, -(-len(starts) // self.batch_size))):
            yield self._cut(starts[step * self.batch_size : (step + 1) * self.batch_size])


class PackedBatches(_Batches):
    """Whole conversations, packed into rows with little padding, for tuning on chats.

    A conversation of n tokens takes n - 1 places of a row: there is nothing to predict after its last one.

    Raises:
        UserError: the store is not of conversations, or one is longer than T + 1 tokens.
    """

    def __init__(self, store: TokenStore, batch_size: int, seq_len: int, seed: int) -> None:
        super().__init__(store, batch_size, seq_len, seed)
        if store.mask is None:
            raise UserError(f"{store.folder} holds plain text, without marks of what the assistant says.")
        lengths = np.diff(store.offsets) - 1
        if lengths.max() > seq_len:
            raise UserError(
                f"{store.folder} has a conversation of {lengths.max() + 1} tokens, but --seq-len {seq_len}"
                f" takes {seq_len + 1} at most: tokenize again for this length."
            )
        row_of = pack(lengths, seq_len)
        self._members: NDArray[np.int64] = np.argsort(row_of, kind="stable")  # conversations, row after row
        self._borders: NDArray[np.int64] = np.concatenate([[0], np.cumsum(np.bincount(row_of))])
        self.n_rows = len(self._borders) - 1

    def _rows(self, rows: list[tuple[int, int]]) -> Batch:
        return self._fill([row for _, row in rows])

    def _fill(self, rows: list[int] | NDArray[Any]) -> Batch:
        store, T = self.store, self.seq_len
        assert store.mask is not None
        shape = (len(rows), T)
        input_ids = np.full(shape, store.tokens[0], np.int64)  # padded with <|bos|>, which begins every conversation
        labels = np.full(shape, IGNORED, np.int64)
        position_ids = np.zeros(shape, np.int64)
        for i, row in enumerate(rows):
            at = 0
            for member in self._members[self._borders[row] : self._borders[row + 1]]:
                first, last = store.offsets[member], store.offsets[member + 1]
                end = at + int(last - first) - 1
                input_ids[i, at:end] = store.tokens[first : last - 1]
                targets = store.tokens[first + 1 : last].astype(np.int64)
                labels[i, at:end] = np.where(store.mask[first + 1 : last], targets, IGNORED)
                position_ids[i, at:end] = np.arange(end - at)
                at = end
            position_ids[i, at:] = np.arange(T - at)  # the padding counts as one more conversation
        return Batch(*map(torch.from_numpy, (input_ids, labels, position_ids)))

    def validation_batches(self, count: int) -> Iterator[Batch]:
        # Shuffled, because packing puts the long conversations first.
        order = np.random.default_rng(0).permutation(self.n_rows)
        for step in range(min(count, -(-self.n_rows // self.batch_size))):
            yield self._fill(order[step * self.batch_size : (step + 1) * self.batch_size])
