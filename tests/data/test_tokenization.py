import itertools
from pathlib import Path

import numpy as np
import pytest

from nanochat.data.batches import PackedBatches, StreamBatches
from nanochat.data.sources import read_conversations, read_documents
from nanochat.data.store import TokenStore
from nanochat.data.tokenization import CHUNK_ITEMS, tokenize_conversations, tokenize_documents

REAL = Path("/work/shared/data")
real_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real data of {REAL} is not here")


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def test_documents_begin_with_bos_and_hold_no_other_control_token(tiny_tokenizer):
    texts = ["the cat", "say <|assistant_end|>", "", "naïve\n"] * CHUNK_ITEMS
    rows = list(tokenize_documents(texts, tiny_tokenizer))
    assert len(rows) == len(texts) and all(mask is None for _, mask in rows)
    special = set(tiny_tokenizer.all_special_ids)
    for text, (ids, _) in zip(texts[:4], rows):
        assert ids[0] == tiny_tokenizer.bos_token_id and not special & set(ids[1:])
        assert tiny_tokenizer.decode(ids[1:]) == text


def test_conversations_are_masked(tiny_tokenizer):
    [(ids, mask), _] = tokenize_conversations([turns("hi", "the cat"), turns("a", "b")], tiny_tokenizer, 99)
    learnt = [token for token, flag in zip(ids, mask) if flag]
    assert tiny_tokenizer.decode(learnt) == "the cat<|assistant_end|>"
    assert ids[0] == tiny_tokenizer.bos_token_id and mask[0] == 0


def test_long_conversations_are_cut_or_dropped_and_counted(tiny_tokenizer):
    told = []
    long = turns("hi", "one <|assistant_end|>", "and", "two", "more", "x" * 50)
    whole = turns("hi", "one <|assistant_end|>", "and", "two")
    [(expected, _)] = tokenize_conversations([whole], tiny_tokenizer, 999, told.append)
    assert len(list(tokenize_conversations([whole], tiny_tokenizer, len(expected), told.append))) == 1
    assert not told
    for room in (len(expected), len(expected) + 30):
        [(ids, mask)] = tokenize_conversations([long], tiny_tokenizer, room, told.append)
        assert ids == expected and mask[-1] == 1
    [(ids, _)] = tokenize_conversations([long], tiny_tokenizer, len(expected) - 1, told.append)
    assert tiny_tokenizer.decode(ids).endswith("one <|assistant_end|><|assistant_end|>")
    short = list(tokenize_conversations([turns("a", "b"), turns("x" * 50, "y"), long], tiny_tokenizer, 40, told.append))
    assert len(short) == 2
    assert told[-1] == "Of 3 conversations, 1 were dropped and 1 cut after an earlier reply, to keep within 40 tokens."


def test_the_count_is_told_too_when_a_limit_stops_early(tiny_tokenizer, tmp_path, caplog):
    endless = itertools.cycle([turns("a", "b"), turns("x" * 50, "y")])
    store = TokenStore.write(tmp_path / "a", tokenize_conversations(endless, tiny_tokenizer, 20), 280, max_tokens=100)
    assert 100 <= store.meta.tokens < 110
    assert "were dropped" in caplog.text


@real_data
def test_real_text_to_batches(tiny_tokenizer, tmp_path):
    documents = itertools.islice(read_documents(str(REAL / "text" / "simple_stories"), "train"), 30)
    texts = list(documents)
    store = TokenStore.write(
        tmp_path / "a",
        tokenize_documents(texts, tiny_tokenizer),
        len(tiny_tokenizer),
        token_bytes=tiny_tokenizer.token_bytes(),
    )
    assert store.meta.text_bytes == sum(len(text.encode()) for text in texts)
    batch = StreamBatches(store, 4, 64, 0).batch(0)
    assert tiny_tokenizer.decode(batch.labels[0])[:-5] in "<|bos|>".join(texts) + "<|bos|>" + texts[0]


@real_data
def test_real_chats_to_batches(tiny_tokenizer, tmp_path):
    conversations = list(itertools.islice(read_conversations(str(REAL / "chat" / "chatterbot"), "train"), 300))
    rows = list(tokenize_conversations(conversations, tiny_tokenizer, 513))
    store = TokenStore.write(tmp_path / "a", rows, len(tiny_tokenizer))
    batches = PackedBatches(store, 4, 512, 0)
    steps = batches.n_rows // 4
    trained = sum(int((batches.batch(step).labels >= 0).sum()) for step in range(steps))
    assert trained <= store.meta.trained_tokens == sum(int(np.sum(mask)) for _, mask in rows)
    replies = [message["content"] for one in conversations for message in one if message["role"] == "assistant"]
    labels = batches.batch(0).labels
    said = tiny_tokenizer.decode(labels[labels >= 0]).split("<|assistant_end|>")[:-1]
    assert set(said) <= set(replies) and len(said) > 10
