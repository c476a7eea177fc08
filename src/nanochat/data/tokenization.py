"""From documents and conversations to token ids, in the form that `TokenStore.write` takes."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from nanochat.data.conversations import Conversation
from nanochat.data.store import Document

_log = logging.getLogger(__name__)

# As much as one bulk encoding takes: enough to keep its threads busy, little enough to hold.
CHUNK_DOCUMENTS, CHUNK_CHARACTERS = 256, 1_000_000


def tokenize_documents(texts: Iterable[str], tokenizer: Any) -> Iterator[Document]:
    """`<|bos|>` and the ids of each text, which never become control tokens; no mask, all of it is learnt."""
    for chunk in _chunks(texts):
        for ids in tokenizer.encode_ordinary_batch(chunk):
            yield [tokenizer.bos_token_id, *ids], None


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    size = 0
    for text in texts:
        chunk.append(text)
        size += len(text)
        if len(chunk) == CHUNK_DOCUMENTS or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def tokenize_conversations(
    conversations: Iterable[Conversation],
    tokenizer: Any,
    max_length: int,
    report: Callable[[str], None] = _log.warning,
) -> Iterator[Document]:
    """The ids of each conversation with the mask of what the assistant says, by the chat template.

    A conversation of more than `max_length` tokens is cut after the last reply that ends within them, and
    dropped if none does: at the end, or when the caller stops, `report` is told how many of either.
    """
    seen = cut = dropped = 0
    try:
        for conversation in conversations:
            encoded = tokenizer.apply_chat_template(
                conversation, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
            ids = np.asarray(encoded["input_ids"], np.int64)
            mask = np.asarray(encoded["assistant_masks"], np.uint8)
            seen += 1
            if len(ids) > max_length:
                # Only the template can place this token, so it stands exactly where a reply ends.
                ends = np.flatnonzero(ids[:max_length] == tokenizer.eos_token_id)
                if not len(ends):
                    dropped += 1
                    continue
                cut += 1
                ids, mask = ids[: ends[-1] + 1], mask[: ends[-1] + 1]
            yield ids, mask
    finally:
        if cut or dropped:
            report(
                f"Of {seen} conversations, {dropped} were dropped and {cut} cut after an earlier reply,"
                f" to keep within {max_length} tokens."
            )
