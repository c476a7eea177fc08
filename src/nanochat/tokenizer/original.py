"""The original nanochat's `tokenizer.pkl`, a pickled tiktoken `Encoding`: read without executing it, and written."""

import pickle
from pathlib import Path
from typing import Any

import tiktoken

from nanochat.common import UserError, atomic_file
from nanochat.tokenizer.byte_level import pattern_of, ranks_of
from nanochat.tokenizer.tokenization import SPECIAL_TOKENS, NanoChatTokenizer


def load_tokenizer_pickle(path: str | Path) -> NanoChatTokenizer:
    """Read `tokenizer.pkl` as data: same ids, same split pattern. Nothing in the file is executed or imported.

    Raises:
        UserError: no such file, no pickle of a tiktoken Encoding, a pickle that calls for anything else, or a
            vocabulary that is not byte-level BPE with NanoChat's nine special tokens last.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no tokenizer pickle at {path}")
    with open(path, "rb") as file:
        try:
            encoding = _InertUnpickler(file).load()
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except Exception as error:  # a broken or hostile pickle can make the unpickler raise nearly anything
            raise UserError(f"{path} is not a readable pickle: {type(error).__name__}: {error}") from error
    state = getattr(encoding, "state", None) if isinstance(encoding, _InertEncoding) else None
    if not isinstance(state, dict):
        raise UserError(f"{path} holds no tiktoken Encoding with its own vocabulary")
    try:
        return _from_state(state)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def save_tokenizer_pickle(tokenizer: NanoChatTokenizer, path: str | Path) -> None:
    """Write the original's `tokenizer.pkl`, which `pickle.load` opens as a tiktoken `Encoding` with the same ids."""
    backend = tokenizer.backend_tokenizer
    encoding = tiktoken.Encoding(
        name="rustbpe",  # what the original calls its own
        pat_str=pattern_of(backend),
        mergeable_ranks=ranks_of(backend),
        special_tokens=tokenizer.get_added_vocab(),
    )
    with atomic_file(path) as temporary:
        temporary.write_bytes(pickle.dumps(encoding, protocol=4))


class _InertEncoding:
    """Stands in for tiktoken's Encoding while unpickling: keeps the state, does nothing with it."""

    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


class _InertUnpickler(pickle.Unpickler):
    """Resolves the two names that a pickled Encoding uses (protocols 2 to 5), to stand-ins, and no other."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("tiktoken.core", "Encoding"):
            return _InertEncoding
        if (module, name) == ("_codecs", "encode"):
            # Protocol 2 writes bytes as a call of this. A new function each time: nothing a pickle sets on it stays.
            return lambda text, _encoding: text.encode("latin1")
        raise UserError(
            f"refused, because it asks for {module}.{name}, which a tokenizer has no need of; nothing was executed"
        )


def _from_state(state: dict[Any, Any]) -> NanoChatTokenizer:
    pattern, ranks, special = (state.get(key) for key in ("pat_str", "mergeable_ranks", "special_tokens"))
    if not isinstance(pattern, str) or not isinstance(ranks, dict) or not isinstance(special, dict):
        raise UserError("the Encoding lacks one of pat_str, mergeable_ranks and special_tokens")
    if not all(type(token) is bytes and type(rank) is int for token, rank in ranks.items()):
        raise UserError("mergeable_ranks must map bytes to integers")
    expected = {token: len(ranks) + i for i, token in enumerate(SPECIAL_TOKENS)}
    if special != expected:
        raise UserError(f"the special tokens must be {expected}, got {special}")
    return NanoChatTokenizer.from_ranks(ranks, pattern)
