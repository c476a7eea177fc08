import pytest

from nanochat.tokenizer import NanoChatTokenizer, train_tokenizer

TEXT = (
    "The quick brown fox jumps over the lazy dog. The dog sleeps; the fox doesn't care, and it won't wait.\n\n"
    "In 1984 there were 365 foxes, 12 dogs and 3 users. A user asks, an assistant answers: user, assistant, end.\n"
    "\tprint('ab' * 10)  # a start, an output, an end   \n<b>bos</b> Größe, ÉCOLE, Привет, 你好, 👍🏽\n"
) * 3


@pytest.fixture(scope="session")
def corpus() -> str:
    return TEXT


@pytest.fixture(scope="session")
def tokenizer(corpus) -> NanoChatTokenizer:
    return train_tokenizer([corpus, "user assistant start end bos output python " * 5], 400)
