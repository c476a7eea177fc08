"""Text to token ids and back: the tokenizer class, its chat template, BPE training, the original's pickle."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanochat.tokenizer.original import load_tokenizer_pickle, save_tokenizer_pickle
    from nanochat.tokenizer.tokenization import SPECIAL_TOKENS, SPLIT_PATTERN, NanoChatTokenizer
    from nanochat.tokenizer.training import compression_report, train_tokenizer

_HOMES = {
    "SPECIAL_TOKENS": "tokenization",
    "SPLIT_PATTERN": "tokenization",
    "NanoChatTokenizer": "tokenization",
    "compression_report": "training",
    "load_tokenizer_pickle": "original",
    "save_tokenizer_pickle": "original",
    "train_tokenizer": "training",
}

__all__ = [
    "SPECIAL_TOKENS",
    "SPLIT_PATTERN",
    "NanoChatTokenizer",
    "compression_report",
    "load_tokenizer_pickle",
    "save_tokenizer_pickle",
    "train_tokenizer",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: Transformers takes seconds to import."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
