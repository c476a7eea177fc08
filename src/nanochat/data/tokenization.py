"""From a corpus to a token store: encoded in parallel threads, resumable, the same bytes whatever happens on the way.

Threads, not processes: nine tenths of the work is tiktoken's, which holds no lock of Python's, so threads share it
without copies, pickles or orphans.
"""

import collections
import contextlib
import hashlib
import itertools
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nanochat.data.conversations import Conversation
from nanochat.data.mixture import Lane, Mixture
from nanochat.data.sources import Corpus
from nanochat.data.store import Document, TokenStore, tokenizer_fingerprint
from nanochat.data.writer import StoreWriter

_log = logging.getLogger(__name__)

CHUNK_CHARACTERS = 250_000  # encoded in one go: enough to be quick, little enough to hold many
WRITTEN_AT_ONCE = 2**16  # tokens
COMMIT_EVERY_SECONDS, COMMIT_SHARE = 5.0, 0.05  # of the time at most


class Encoded(NamedTuple):
    """What became of one item."""

    ids: NDArray[Any]  # its tokens; none if it was dropped
    mask: NDArray[np.uint8] | None = None  # 1 for each token to learn from, or None: all of them
    fate: str = "whole"  # or "cut" or "dropped"


class Status(NamedTuple):
    """How far tokenizing is."""

    documents: int
    tokens: int
    text_bytes: int
    share: float | None  # from 0 to 1; None where the size of a source is not known


class DocumentEncoder:
    """`<|bos|>` and the ids of each text, which never become control tokens; no mask, all of it is learnt."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, texts: list[str]) -> list[Encoded]:
        return [Encoded(ids) for ids in self.tokenizer.encode_documents(texts)]

    def size_of(self, text: str) -> int:
        return len(text)

    def identity(self) -> Any:
        return ["documents", tokenizer_fingerprint(self.tokenizer)]


class ConversationEncoder:
    """The ids of each conversation with the mask of what the assistant says, by the chat template.

    A conversation of more than `max_length` tokens is cut after the last reply that ends within them, and dropped if
    none does. Rows of T inputs (`PackedBatches`) take conversations of up to T + 1 tokens.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length

    def __call__(self, conversations: list[Conversation]) -> list[Encoded]:
        encoded = self.tokenizer.apply_chat_template(
            conversations, return_assistant_tokens_mask=True, tokenizer_kwargs={"verbose": False}
        )
        return [self._fitted(*row) for row in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)]

    def size_of(self, conversation: Conversation) -> int:
        return len(str(conversation))

    def identity(self) -> Any:
        template = self.tokenizer.chat_template
        return ["conversations", tokenizer_fingerprint(self.tokenizer), template, self.max_length]

    def _fitted(self, ids: list[int], mask: list[int]) -> Encoded:
        end = len(ids)
        if end > self.max_length:
            # Only the template can place this token, so it stands exactly where a reply ends.
            ends = np.flatnonzero(np.array(ids[: self.max_length]) == self.tokenizer.eos_token_id)
            end = ends[-1] + 1 if len(ends) else 0
        fate = "whole" if end == len(ids) else "cut" if end else "dropped"
        return Encoded(np.array(ids[:end], np.int64), np.array(mask[:end], np.uint8), fate)


def tokenize(
    folder: str | Path,
    corpus: Corpus[Any],
    encoder: DocumentEncoder | ConversationEncoder,
    *,
    max_tokens: int | None = None,
    workers: int | None = None,
    report: Callable[[str], None] = _log.warning,
    progress: Callable[[Status], None] | None = None,
) -> TokenStore:
    """Write the store of `corpus` to `folder` and open it; if it is there already, from the same, only open it.

    After a kill the next call goes on from at most a few seconds before it. The store is the same to the byte, however
    many threads and kills it took. Memory does not grow with the corpus: for each source it holds two chunks of 250,000
    characters for each worker, and about ten times the longest document.

    Args:
        max_tokens: where to stop; see `StoreWriter`.
        workers: threads that encode; None: one for each core.
        report: is told what a user should know, in sentences.
        progress: called every few thousand tokens.

    Raises:
        UserError: what is wrong with the source, or the disk is full.
    """
    made_of = [corpus.identity, encoder.identity(), max_tokens, CHUNK_CHARACTERS]
    key = hashlib.blake2b(json.dumps(made_of).encode(), digest_size=16).hexdigest()
    if (Path(folder) / "meta.json").exists() and (store := TokenStore.open(folder)).meta.key == key:
        return store
    tokenizer, workers = encoder.tokenizer, workers or _cores()
    options: dict[str, Any] = {"key": key, "max_tokens": max_tokens, "token_bytes": tokenizer.token_bytes()}
    with _pool(workers) as pool, StoreWriter(folder, len(tokenizer), **options) as writer:
        done = writer.progress
        if writer.discarded:
            report(f"{writer.discarded:,} tokens of other data, another tokenizer or another length are thrown away.")
        if done.tokens:
            report(f"Going on after {done.tokens:,} tokens.")
        state = done.state or {"mixture": {"lanes": [None] * len(corpus.sources)}, "counts": {}}
        lane_options: dict[str, Any] = {"chunk_size": CHUNK_CHARACTERS, "pool": pool, "ahead": 2 * workers}
        if corpus.split == "val":  # little of it, one item in 100: reading ahead could be reading gigabytes
            lane_options |= {"chunk_size": CHUNK_CHARACTERS // 10, "ahead": 1}
        lanes = [
            Lane(source, encoder, encoder.size_of, corpus.repeats, state=lane, **lane_options)
            for source, lane in zip(corpus.sources, state["mixture"]["lanes"], strict=True)
        ]
        mixture = Mixture(lanes, corpus.weights, lambda one: len(one.ids), done.state and state["mixture"])
        counts = collections.Counter(state["counts"])
        commit_at = time.monotonic() + COMMIT_EVERY_SECONDS
        for batch in _batches(mixture, min(WRITTEN_AT_ONCE, max_tokens or WRITTEN_AT_ONCE)):
            counts.update(one.fate for one in batch)
            batch = [one for one in batch if len(one.ids)]
            masks = [one.mask for one in batch if one.mask is not None]
            if batch and not writer.add([one.ids for one in batch], masks or None):
                break
            if progress is not None:
                progress(Status(done.documents, done.tokens, done.text_bytes, _share(mixture, done.tokens, max_tokens)))
            if corpus.split == "train" and (begun := time.monotonic()) > commit_at:  # "val" takes no time
                writer.commit({"mixture": mixture.state(), "counts": dict(counts)})
                now = time.monotonic()
                commit_at = now + max(COMMIT_EVERY_SECONDS, (now - begun) / COMMIT_SHARE)
        writer.finish(tokenizer_fingerprint(tokenizer))
    _tell(report, counts, encoder, mixture, corpus)
    return TokenStore.open(folder)


def tokenize_documents(texts: Iterable[str], tokenizer: Any) -> Iterator[Document]:
    """`<|bos|>` and the ids of each text, as `TokenStore.write` takes them: for texts that are no corpus."""
    encode = DocumentEncoder(tokenizer)
    texts = iter(texts)
    while chunk := list(itertools.islice(texts, 256)):
        for one in encode(chunk):
            yield one.ids, None


def _batches(documents: Iterable[Encoded], at_once: int) -> Iterator[list[Encoded]]:
    batch: list[Encoded] = []
    tokens = 0
    for one in documents:
        batch.append(one)
        tokens += len(one.ids) + 1
        if tokens >= at_once:
            yield batch
            batch, tokens = [], 0
    if batch:
        yield batch


def _share(mixture: Mixture[Encoded], tokens: int, max_tokens: int | None) -> float | None:
    shares = [mixture.share, tokens / max_tokens if max_tokens else None]
    return max((share for share in shares if share is not None), default=None)


def _tell(
    report: Callable[[str], None],
    counts: collections.Counter[str],
    encoder: DocumentEncoder | ConversationEncoder,
    mixture: Mixture[Encoded],
    corpus: Corpus[Any],
) -> None:
    if counts["cut"] or counts["dropped"]:
        assert isinstance(encoder, ConversationEncoder)
        report(
            f"Of {counts.total()} conversations, {counts['dropped']} were dropped and {counts['cut']} cut after an"
            f" earlier reply, to keep within {encoder.max_length} tokens."
        )
    if corpus.repeats:
        for lane, tokens in zip(mixture.lanes, mixture.taken, strict=True):
            share, known = tokens / max(1, sum(mixture.taken)), lane.source.size is not None or lane.passes >= 1
            epochs = f", {lane.passes:.2f} epochs" if known else ""
            report(f"{lane.source.name}: {tokens:,} tokens ({share:.1%}){epochs}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(workers, "encoder")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the chunks in work, not for those in line
