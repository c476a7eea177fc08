"""Writes a token store so that a kill loses seconds: what was committed is gone on with by the next writer.

A store grows in `.NAME.partial` beside where it will be. A commit makes its files safe on disk and then replaces
`progress.json`: how much of each file counts, and where the source stood. The next writer of the same `key` cuts the
files to that and goes on. The finished folder takes its place in one rename.
"""

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from nanochat.common import UserError, atomic_file

FORMAT = 1
FILES = ("tokens.bin", "mask.bin", "offsets.bin")


@dataclasses.dataclass(frozen=True)
class StoreMeta:
    """What `meta.json` says about a store."""

    format: int
    dtype: str
    vocab_size: int
    documents: int
    tokens: int
    trained_tokens: int  # the targets of one epoch
    text_bytes: int  # UTF-8 bytes the tokens stand for, control tokens counting nothing; 0 if not known
    has_mask: bool
    fingerprint: str  # of the tokenizer
    key: str = ""  # of the source, the tokenizer and the limit; empty if it was not tokenized by us


@dataclasses.dataclass
class Progress:
    """How much of a store is written: what a commit remembers."""

    key: str
    documents: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    text_bytes: int = 0
    has_mask: bool = False
    state: Any = None  # where the source stood: plain data, for whoever reads it


class StoreWriter:
    """Writes one store; a context manager. Going on with what another writer of the same `key` committed.

    Args:
        folder: of the finished store; one that is there is replaced at the end.
        vocab_size: ids are below it; up to 65,536 they take two bytes each, else four.
        key: names all that the content depends on; empty: begin anew.
        max_tokens: when to stop. Plain documents are cut to fit; conversations stay whole, so the last one may go
            beyond.
        token_bytes: (V,) int32, the bytes each id stands for, to count the bytes of text.

    Attributes:
        progress: of what is written.
        discarded: how many tokens of another key, or damaged, were thrown away.

    Raises:
        UserError: by every method, if the disk is full or the folder can't be written.
    """

    def __init__(
        self,
        folder: str | Path,
        vocab_size: int,
        *,
        key: str = "",
        max_tokens: int | None = None,
        token_bytes: NDArray[np.int32] | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.partial = self.folder.with_name(f".{self.folder.name}.partial")
        self.dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
        self.vocab_size, self.max_tokens, self._token_bytes = vocab_size, max_tokens, token_bytes
        with self._told():
            left, self.discarded = self._left_over(key)
            self.progress = left or Progress(key)
            if left is None:
                shutil.rmtree(self.partial, ignore_errors=True)
                self.partial.mkdir(parents=True)
            for stray in self.partial.glob(".*.tmp"):  # of a kill in the middle of a commit
                stray.unlink()
            self._files = {name: self._open(name, size) for name, size in self._sizes(self.progress).items()}
            if not self.progress.documents:
                self._files["offsets.bin"].write(np.int64(0).tobytes())

    def __enter__(self) -> "StoreWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # a full disk was told already; what counts is what was committed
                file.close()

    def add(self, ids: Sequence[NDArray[Any]], masks: Sequence[NDArray[np.uint8]] | None) -> bool:
        """Append documents of token ids, all with masks (1: learnt from) or all without. False: the limit is reached.

        Raises:
            ValueError: an id out of range, an empty document, a mask that teaches nothing.
        """
        progress = self.progress
        if progress.documents and progress.has_mask != (masks is not None):
            raise ValueError("either every document has a mask, or none has")
        progress.has_mask = masks is not None
        tokens, lengths = np.concatenate(ids), np.array([len(row) for row in ids])
        if not lengths.all() or tokens.min() < 0 or tokens.max() >= self.vocab_size:
            raise ValueError(f"after document {progress.documents}: one empty or with ids beyond {self.vocab_size - 1}")
        ends = progress.tokens + np.cumsum(lengths)
        if self.max_tokens is not None and ends[-1] >= self.max_tokens:
            ends = ends[: np.searchsorted(ends, self.max_tokens) + 1]
            if masks is None:
                ends[-1] = self.max_tokens
            tokens = tokens[: ends[-1] - progress.tokens]
        with self._told():
            if masks is not None:
                flags = _checked(masks[: len(ends)], lengths)
                self._files["mask.bin"].write(flags.data)
                progress.trained_tokens += int(flags.sum()) - sum(int(mask[0]) for mask in masks[: len(ends)])
            self._files["tokens.bin"].write(tokens.astype(self.dtype).data)
            self._files["offsets.bin"].write(ends.astype(np.int64).data)
        progress.documents, progress.tokens = progress.documents + len(ends), int(ends[-1])
        if self._token_bytes is not None:
            progress.text_bytes += int(self._token_bytes[tokens].sum())
        return self.max_tokens is None or progress.tokens < self.max_tokens

    def commit(self, state: Any) -> None:
        """Make sure that a kill from here on loses nothing of what is written; `state` is where the source stands."""
        self.progress.state = state
        with self._told():
            self._sync()
            with atomic_file(self.partial / "progress.json") as temporary:
                temporary.write_text(json.dumps(dataclasses.asdict(self.progress)))

    def finish(self, fingerprint: str) -> None:
        """Put the store in its place.

        Raises:
            UserError: there are no documents.
        """
        done = self.progress
        if not done.documents:
            self.discard()
            raise UserError(f"Nothing to write to {self.folder}: the source gave no documents.")
        trained = done.trained_tokens if done.has_mask else done.tokens
        meta = StoreMeta(
            *(FORMAT, self.dtype.name, self.vocab_size, done.documents, done.tokens, trained),
            *(done.text_bytes, done.has_mask, fingerprint, done.key),
        )
        replaced = self.folder.with_name(f".{self.folder.name}.old")
        with self._told():
            self._sync()
            if not done.has_mask:
                (self.partial / "mask.bin").unlink()
            with atomic_file(self.partial / "meta.json") as temporary:
                temporary.write_text(json.dumps(dataclasses.asdict(meta), indent=2))
            shutil.rmtree(replaced, ignore_errors=True)
            if self.folder.exists():
                os.replace(self.folder, replaced)
            os.replace(self.partial, self.folder)
            (self.folder / "progress.json").unlink(missing_ok=True)  # last: until here a kill loses nothing
            shutil.rmtree(replaced, ignore_errors=True)

    def discard(self) -> None:
        """Throw away what is written."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def _left_over(self, key: str) -> tuple[Progress | None, int]:
        """What an earlier writer committed if it is of this key and whole; and how many tokens there are if not."""
        try:
            left = Progress(**json.loads((self.partial / "progress.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None, 0
        sizes = {name: (self.partial / name).stat().st_size for name in FILES if (self.partial / name).exists()}
        is_whole = all(sizes.get(name, 0) >= size for name, size in self._sizes(left).items())
        return (left, 0) if key and left.key == key and is_whole else (None, left.tokens)

    def _sizes(self, progress: Progress) -> dict[str, int]:
        masked = progress.tokens if progress.has_mask else 0
        offsets = 8 * (progress.documents + 1) if progress.documents else 0
        return dict(zip(FILES, (progress.tokens * self.dtype.itemsize, masked, offsets), strict=True))

    def _open(self, name: str, size: int) -> BinaryIO:
        file = open(self.partial / name, "ab", buffering=2**20)  # noqa: SIM115 (closed by __exit__)
        file.truncate(size)
        return file

    def _sync(self) -> None:
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.folder} can't be written ({error.strerror or error}): make room or give another place, and give"
                " the same command again; it goes on with what is there."
            ) from error


def _checked(masks: Sequence[NDArray[np.uint8]], lengths: NDArray[Any]) -> NDArray[np.uint8]:
    for mask, length in zip(masks, lengths):
        # The first token is never predicted; and a row without any target would make the loss 0/0.
        if len(mask) != length or not mask[1:].any():
            raise ValueError("a mask has another length than its document, or nothing to learn from")
    return np.concatenate(masks)
