"""Byte-level BPE as its two libraries see it, and the way between them.

`tiktoken` holds ranks: the bytes of every token and its id, where the lower id is merged first.
`tokenizers` holds merges: pairs of strings in which one printable character stands for each byte.
"""

import itertools
import json
from collections.abc import Mapping

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from nanochat.common import UserError

Ranks = Mapping[bytes, int]


def _byte_alphabet() -> list[str]:
    """The 256 characters that stand for the bytes 0 to 255: itself where printable, else one above Latin-1."""
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    stand_ins = (character for character in characters if ord(character) > 255)
    return [chr(byte) if chr(byte) in characters else next(stand_ins) for byte in range(256)]


CHARACTER_OF_BYTE = _byte_alphabet()
BYTE_OF_CHARACTER = {character: byte for byte, character in enumerate(CHARACTER_OF_BYTE)}


def to_characters(token: bytes) -> str:
    """Spell bytes in byte characters, one each."""
    return "".join([CHARACTER_OF_BYTE[byte] for byte in token])


def to_bytes(token: str) -> bytes:
    """The bytes that byte characters stand for; the inverse of `to_characters`."""
    return bytes([BYTE_OF_CHARACTER[character] for character in token])


def pre_tokenizer(pattern: str) -> pre_tokenizers.PreTokenizer:
    """Split text by the regular expression `pattern`, then spell the pieces in byte characters.

    Raises:
        UserError: `pattern` is no regular expression.
    """
    try:
        expression = Regex(pattern)
    except Exception as error:  # `tokenizers` raises a bare Exception
        raise UserError(f"the split pattern {pattern!r} is no regular expression: {error}") from error
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(expression, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def merges_of(ranks: Ranks) -> list[tuple[bytes, bytes]]:
    """Recover the merges that made `ranks`: each token is the last merge that BPE makes on its own bytes.

    Raises:
        UserError: a byte is missing, the ids have gaps, or a token is not the merge of two earlier ones.
    """
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise UserError(f"the {len(ranks)} token ids of a byte-level BPE must be 0 to {len(ranks) - 1}, each once")
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise UserError(f"a byte-level BPE must have all 256 bytes as tokens, but byte {missing[0]} is missing")
    longer = sorted((token for token in ranks if len(token) != 1), key=ranks.__getitem__)
    return [_last_merge(token, ranks) for token in longer]


def _last_merge(token: bytes, ranks: Ranks) -> tuple[bytes, bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    own_rank = ranks[token]
    while len(parts) > 2:
        pair_ranks = [ranks.get(left + right, own_rank) for left, right in itertools.pairwise(parts)]
        lowest = min(pair_ranks)
        if lowest >= own_rank:
            break
        i = pair_ranks.index(lowest)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    if len(parts) != 2:
        raise UserError(
            f"token {own_rank} ({token!r}) is not the merge of two earlier tokens: this is no BPE vocabulary"
        )
    return parts[0], parts[1]


def backend_of(ranks: Ranks, pattern: str, special_tokens: tuple[str, ...]) -> Tokenizer:
    """The `tokenizers` twin of a rank table: same ids, and the special tokens take the ids after it."""
    vocabulary = {to_characters(token): rank for token, rank in ranks.items()}
    # The model knows the special tokens too, so that `vocab_size` counts them. No merge makes them from text.
    vocabulary |= {token: len(ranks) + i for i, token in enumerate(special_tokens)}
    merges = [(to_characters(left), to_characters(right)) for left, right in merges_of(ranks)]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizer(pattern)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special_tokens])
    return backend


def ranks_of(backend: Tokenizer) -> dict[bytes, int]:
    """The rank table of a `tokenizers` byte-level BPE, without its added tokens, by rising id."""
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    by_id = sorted(backend.get_vocab(with_added_tokens=False).items(), key=lambda item: item[1])
    return {to_bytes(token): rank for token, rank in by_id if token not in added}


def pattern_of(backend: Tokenizer) -> str:
    """The regular expression that splits text before merging."""
    state = json.loads(backend.pre_tokenizer.__getstate__())
    return state["pretokenizers"][0]["pattern"]["Regex"]
