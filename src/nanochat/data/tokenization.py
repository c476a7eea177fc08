"""From documents and conversations to token ids, in the form that `TokenStore.write` takes."""

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from nanochat.data.conversations import Conversation
from nanochat.data.store import Document

Item = TypeVar("Item")

_log = logging.getLogger(__name__)

# What is encoded in one go: enough to be quick, little enough to hold.
CHUNK_ITEMS, CHUNK_CHARACTERS = 256, 1_000_000


def tokenize_documents(texts: Iterable[str], tokenizer: Any) -> Iterator[Document]:
    """`<|bos|>` and the ids of each text, which never become control tokens; no mask, all of it is learnt."""
    for chunk in _chunks(texts, len):
        for ids in tokenizer.encode_ordinary_batch(chunk):
            yield [tokenizer.bos_token_id, *ids], None


def tokenize_conversations(
    conversations: Iterable[Conversation],
    tokenizer: Any,
    max_length: int,
    report: Callable[[str], None] = _log.warning,
) -> Iterator[Document]:
    """The ids of each conversation with the mask of what the assistant says, by the chat template.

    A conversation of more than `max_length` tokens is cut after the last reply that ends within them, and
    dropped if none does: at the end, or when the caller stops, `report` is told how many of either. Rows of T
    inputs (`PackedBatches`) take conversations of up to T + 1 tokens.
    """
    seen = cut = dropped = 0
    try:
        for chunk in _chunks(conversations, lambda conversation: len(str(conversation))):
            encoded = tokenizer.apply_chat_template(
                chunk, return_assistant_tokens_mask=True, tokenizer_kwargs={"verbose": False}
            )
            for ids, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True):
                seen += 1
                if len(ids) > max_length:
                    # Only the template can place this token, so it stands exactly where a reply ends.
                    ends = np.flatnonzero(np.array(ids[:max_length]) == tokenizer.eos_token_id)
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


def _chunks(items: Iterable[Item], size_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    chunk: list[Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += size_of(item)
        if len(chunk) == CHUNK_ITEMS or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
