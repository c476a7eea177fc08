"""A tokenizer of bytes, small enough to check by eye: the shape of NanoChatTokenizer, without its training."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from nanochat.data.store import TokenStore

BOS, USER, USER_END, ASSISTANT, EOS = range(256, 261)


class ByteTokenizer:
    bos_token_id, eos_token_id = BOS, EOS

    def __len__(self) -> int:
        return 261

    def get_vocab(self) -> dict[str, int]:
        return {f"<{i}>": i for i in range(len(self))}

    def token_bytes(self) -> np.ndarray:
        return np.array([1] * 256 + [0] * 5, np.int32)

    def encode_ordinary_batch(self, texts: list[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def apply_chat_template(self, conversation: list[dict], **options: bool) -> dict[str, list[int]]:
        assert options == {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
        ids, mask = [BOS], [0]
        for message in conversation:
            text = list(message["content"].encode())
            if message["role"] == "user":
                ids += [USER, *text, USER_END]
                mask += [0] * (len(text) + 2)
            else:
                ids += [ASSISTANT, *text, EOS]
                mask += [0] + [1] * (len(text) + 1)
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "assistant_masks": mask}


@pytest.fixture(scope="session")
def byte_tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


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
