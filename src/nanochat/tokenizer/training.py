"""Train a tokenizer on any text, and measure how well it compresses."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from nanochat.common import UserError
from nanochat.tokenizer.byte_level import pre_tokenizer, to_bytes
from nanochat.tokenizer.tokenization import SPECIAL_TOKENS, SPLIT_PATTERN, NanoChatTokenizer, check_text

logger = logging.getLogger(__name__)

SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> NanoChatTokenizer:
    """Learn a byte-level BPE vocabulary of `vocab_size` tokens: 256 bytes, merges by frequency, nine special tokens.

    The same texts give the same tokenizer. Texts with too few different words give a smaller one and a logged warning.

    Raises:
        UserError: `vocab_size` leaves no room for bytes and special tokens, there is no text, or a text is no string.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise UserError(
            f"vocab_size must be at least {SMALLEST_VOCABULARY} (256 bytes and {len(SPECIAL_TOKENS)} special tokens), "
            f"got {vocab_size}"
        )
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizer(SPLIT_PATTERN)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(_checked(texts), trainer)
    ranks = {bytes([byte]): byte for byte in range(256)}
    for left, right in json.loads(learner.to_str())["model"]["merges"]:
        ranks[to_bytes(left + right)] = len(ranks)
    tokenizer = NanoChatTokenizer.from_ranks(ranks)
    if len(tokenizer) < vocab_size:
        logger.warning(
            "The text has only %d different merges: the vocabulary is %d tokens, not the %d asked for.",
            len(ranks) - 256,
            len(tokenizer),
            vocab_size,
        )
    return tokenizer


def _checked(texts: Iterable[str]) -> Iterator[str]:
    if isinstance(texts, str):
        raise UserError("texts must be an iterable of strings, got one string; put it into a list")
    some = False
    for text in texts:
        check_text(text)
        some = some or bool(text)
        yield text
    if not some:
        raise UserError("there is no text to train a tokenizer on; give at least one text that is not empty")


def compression_report(tokenizer: NanoChatTokenizer, texts: Mapping[str, str]) -> dict[str, float]:
    """UTF-8 bytes per token, for each kind of text in `texts` (kind to sample): more is better, 1 is no compression.

    Raises:
        UserError: a sample is empty.
    """
    for kind, text in texts.items():
        if not text:
            raise UserError(f"the sample for {kind!r} is empty; give some text to measure")
    ids = tokenizer.encode_ordinary_batch(list(texts.values()))
    return {kind: len(text.encode()) / len(row) for (kind, text), row in zip(texts.items(), ids)}
