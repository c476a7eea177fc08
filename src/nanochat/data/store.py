"""The token store: a corpus as memory-mapped token ids on disk, with a loss mask where it is of conversations.

A folder with `tokens.bin` (uint16 where the vocabulary fits, else uint32), `mask.bin` (uint8, conversations only:
1 = learnt from), `offsets.bin` (int64: where each document starts, and the end) and `meta.json`.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.common import UserError
from nanochat.data.writer import FORMAT, StoreMeta, StoreWriter

IntArray = Sequence[int] | NDArray[Any]
# Token ids; 1 for each token to learn from, or None: all of them.
Document = tuple[IntArray, IntArray | None]


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """A short hash of a tokenizer's vocabulary: equal for stores that the same tokenizer can read."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    return hashlib.blake2b(json.dumps(vocabulary).encode(), digest_size=8).hexdigest()


class TokenStore:
    """A store opened for reading; nothing is in memory before it is asked for.

    Attributes:
        tokens: (N,) uint16 or uint32, all documents one after the other.
        mask: (N,) uint8, 1 where the token is learnt from; None: all are.
        offsets: (documents + 1,) int64; document i is `tokens[offsets[i] : offsets[i + 1]]`.
    """

    def __init__(self, folder: str | Path, meta: StoreMeta) -> None:
        self.folder = Path(folder)
        self.meta = meta
        self.tokens: NDArray[Any] = np.memmap(self.folder / "tokens.bin", np.dtype(meta.dtype), "r")
        self.mask: NDArray[Any] | None = np.memmap(self.folder / "mask.bin", np.uint8, "r") if meta.has_mask else None
        self.offsets: NDArray[Any] = np.memmap(self.folder / "offsets.bin", np.int64, "r")

    def __len__(self) -> int:
        """The number of documents."""
        return self.meta.documents

    @classmethod
    def open(cls, folder: str | Path) -> "TokenStore":
        """Open the store in `folder`; a `UserError` if it is not there or not as it was written."""
        folder = Path(folder)
        remedy = f"delete {folder} and tokenize again."
        try:
            meta = StoreMeta(**json.loads((folder / "meta.json").read_text()))
        except FileNotFoundError:
            raise UserError(f"There is no token store in {folder} (no meta.json); tokenize a corpus first.") from None
        except (ValueError, TypeError) as error:  # not JSON, not UTF-8; other fields
            raise UserError(f"{folder / 'meta.json'} is damaged ({error}): {remedy}") from None
        if meta.format != FORMAT:
            raise UserError(f"{folder} has store format {meta.format}, this version reads {FORMAT}: {remedy}")
        sizes = {"tokens.bin": meta.tokens * np.dtype(meta.dtype).itemsize, "offsets.bin": (meta.documents + 1) * 8}
        if meta.has_mask:
            sizes["mask.bin"] = meta.tokens
        for name, expected in sizes.items():
            actual = (folder / name).stat().st_size if (folder / name).is_file() else 0
            if actual != expected:
                raise UserError(f"{folder / name} has {actual} bytes instead of {expected}: {remedy}")
        store = cls(folder, meta)
        if store.offsets[0] != 0 or store.offsets[-1] != meta.tokens or not (np.diff(store.offsets) > 0).all():
            raise UserError(f"{folder / 'offsets.bin'} is damaged: {remedy}")
        return store

    @classmethod
    def write(
        cls,
        folder: str | Path,
        documents: Iterable[Document],
        vocab_size: int,
        *,
        max_tokens: int | None = None,
        token_bytes: NDArray[np.int32] | None = None,
        fingerprint: str = "",
    ) -> "TokenStore":
        """Write `documents` to `folder`, replacing a store there, and open it. Memory use does not grow with them.

        For a corpus that is tokenized already; `tokenize` does both, in parallel and resumable.

        Args:
            documents: token ids with a mask each, or with None each.
            max_tokens: stop there. Plain documents are cut to fit; conversations stay whole, so the last one
                may go beyond.
            token_bytes: (V,) int32, the bytes each id stands for, to count the bytes of text.
            fingerprint: of the tokenizer, kept in `meta.json`.

        Raises:
            UserError: there are no documents.
        """
        with StoreWriter(folder, vocab_size, max_tokens=max_tokens, token_bytes=token_bytes) as writer:
            try:
                for ids, mask in documents:
                    flags = None if mask is None else np.asarray(mask, np.uint8)
                    if not writer.add([np.asarray(ids, np.int64)], None if flags is None else [flags]):
                        break
                writer.finish(fingerprint)
            except BaseException:
                writer.discard()
                raise
        return cls.open(folder)
