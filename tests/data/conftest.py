"""Small stores whose tokens tell their own place, and a small tokenizer."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from nanochat.data.store import TokenStore
from nanochat.tokenizer import NanoChatTokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tiny_tokenizer() -> NanoChatTokenizer:
    return train_tokenizer(["the cat sat on the mat and the dog sat on the log"] * 4, 280)


@pytest.fixture
def stream_store(tmp_path: Path) -> Callable[[int], TokenStore]:
    """A store of n tokens that are all different, so that a token tells its place."""

    def make(n: int) -> TokenStore:
        return TokenStore.write(tmp_path / f"stream-{n}", [(range(n), None)], max(n, 2))

    return make


@pytest.fixture
def chat_store(tmp_path: Path) -> Callable[[Sequence[int]], TokenStore]:
    """A store of conversations of the given lengths; every third of their tokens is not learnt from."""

    def make(lengths: Sequence[int]) -> TokenStore:
        ends = np.cumsum(lengths)
        documents = [(np.arange(end - n, end), [int(i % 3 != 0) for i in range(n)]) for end, n in zip(ends, lengths)]
        return TokenStore.write(tmp_path / "chats", documents, int(ends[-1]))

    return make
