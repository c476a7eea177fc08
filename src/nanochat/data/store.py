"""The token store: a corpus as memory-mapped token ids on disk, with a loss mask where it is of conversations.

A folder with `tokens.bin` (uint16 where the vocabulary fits, else uint32), `mask.bin` (uint8, conversations only:
1 = learnt from), `offsets.bin` (int64: where each document starts, and the end) and `meta.json`.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanochat.common import UserError, atomic_folder

FORMAT = 1

IntArray = Sequence[int] | NDArray[Any]
# Token ids; 1 for each token to learn from, or None: all of them.
Document = tuple[IntArray, IntArray | None]


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
    fingerprint: str


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
        progress: Callable[[int], None] | None = None,
    ) -> "TokenStore":
        """Write `documents` to `folder`, replacing a store there, and open it. Memory use does not grow with them.

        Args:
            documents: token ids with a mask each, or with None each.
            max_tokens: stop there. Plain documents are cut to fit; conversations stay whole, so the last one
                may go beyond.
            token_bytes: (V,) int32, the bytes each id stands for, to count the bytes of text.
            fingerprint: of the tokenizer, kept in `meta.json`.
            progress: called after each document with the number of tokens so far.

        Raises:
            UserError: there are no documents.
        """
        dtype = np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)
        count = total = trained = text_bytes = 0
        has_mask = False
        with atomic_folder(folder) as temporary:
            with contextlib.ExitStack() as stack:
                tokens_file, mask_file, offsets_file = (
                    stack.enter_context(open(temporary / name, "wb", buffering=2**20))
                    for name in ("tokens.bin", "mask.bin", "offsets.bin")
                )
                offsets_file.write(np.int64(0).tobytes())
                for ids, mask in documents:
                    tokens, flags = _checked(ids, mask, vocab_size, count)
                    if count and has_mask != (flags is not None):
                        raise ValueError("either every document has a mask, or none has")
                    has_mask = flags is not None
                    if flags is not None:
                        mask_file.write(flags.tobytes())
                        trained += int(flags[1:].sum())
                    elif max_tokens is not None:
                        tokens = tokens[: max_tokens - total]
                    tokens_file.write(tokens.astype(dtype).tobytes())
                    count, total = count + 1, total + len(tokens)
                    offsets_file.write(np.int64(total).tobytes())
                    if token_bytes is not None:
                        text_bytes += int(token_bytes[tokens].sum())
                    if progress is not None:
                        progress(total)
                    if max_tokens is not None and total >= max_tokens:
                        break
            if not count:
                raise UserError(f"Nothing to write to {folder}: the source gave no documents.")
            if not has_mask:
                (temporary / "mask.bin").unlink()
                trained = total
            meta = StoreMeta(FORMAT, dtype.name, vocab_size, count, total, trained, text_bytes, has_mask, fingerprint)
            (temporary / "meta.json").write_text(json.dumps(dataclasses.asdict(meta), indent=2))
        return cls.open(folder)


def _checked(
    ids: IntArray, mask: IntArray | None, vocab_size: int, number: int
) -> tuple[NDArray[np.int64], NDArray[np.uint8] | None]:
    tokens = np.asarray(ids, np.int64)
    if not tokens.size or tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(f"document {number}: empty, or with ids outside 0..{vocab_size - 1}")
    if mask is None:
        return tokens, None
    flags = np.asarray(mask, np.uint8)
    # The first token is never predicted; and a row without any target would make the loss 0/0.
    if len(flags) != len(tokens) or not flags[1:].any():
        raise ValueError(f"document {number}: its mask has another length, or nothing to learn from")
    return tokens, flags
