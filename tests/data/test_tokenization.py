import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from nanochat.common import UserError
from nanochat.data.batches import PackedBatches, StreamBatches
from nanochat.data.sources import open_conversations, open_documents, read_conversations, read_documents
from nanochat.data.store import TokenStore
from nanochat.data.tokenization import ConversationEncoder, DocumentEncoder, tokenize, tokenize_documents

REAL = Path("/work/shared/data")
real_data = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real data of {REAL} is not here")


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def jsonl(path, values, key="text"):
    path.write_text("".join(json.dumps({key: value}) + "\n" for value in values))
    return str(path)


def test_documents_begin_with_bos_and_hold_no_other_control_token(tiny_tokenizer):
    texts = ["the cat", "say <|assistant_end|>", "", "naïve\n", "no character: \ufdd0."] * 100
    rows = list(tokenize_documents(texts, tiny_tokenizer))
    assert len(rows) == len(texts) and all(mask is None for _, mask in rows)
    special = set(tiny_tokenizer.all_special_ids)
    for text, (ids, _) in zip(texts, rows):
        assert ids[0] == tiny_tokenizer.bos_token_id and not special & set(ids[1:].tolist())
        assert tiny_tokenizer.decode(ids[1:]) == text


def test_documents_that_tiktoken_cannot_take(tiny_tokenizer):
    blanks = "a" + " " * 200_000 + "b"
    rows = [ids for ids, _ in tokenize_documents(["x", blanks, "y"], tiny_tokenizer)]
    assert [tiny_tokenizer.decode(ids[1:]) for ids in rows] == ["x", blanks, "y"]
    with pytest.raises(UserError, match=r"lone surrogate '\\ud83d' at character 1"):
        list(tokenize_documents(["fine", "a\ud83d"], tiny_tokenizer))
    assert not list(tokenize_documents([], tiny_tokenizer))


def test_conversations_are_masked(tiny_tokenizer):
    encode = ConversationEncoder(tiny_tokenizer, 99)
    one, _ = encode([turns("hi", "the cat"), turns("a", "b")])
    assert tiny_tokenizer.decode(one.ids[one.mask == 1]) == "the cat<|assistant_end|>"
    assert one.ids[0] == tiny_tokenizer.bos_token_id and one.mask[0] == 0


def test_long_conversations_are_cut_or_dropped(tiny_tokenizer):
    long = turns("hi", "one <|assistant_end|>", "and", "two", "more", "x" * 50)
    whole = turns("hi", "one <|assistant_end|>", "and", "two")
    [expected] = ConversationEncoder(tiny_tokenizer, 999)([whole])
    length = len(expected.ids)
    assert expected.fate == "whole" and ConversationEncoder(tiny_tokenizer, length)([whole])[0].fate == "whole"
    for room in (length, length + 30):
        [one] = ConversationEncoder(tiny_tokenizer, room)([long])
        assert one.ids.tolist() == expected.ids.tolist() and one.mask[-1] == 1 and one.fate == "cut"
    [one] = ConversationEncoder(tiny_tokenizer, length - 1)([long])
    assert tiny_tokenizer.decode(one.ids).endswith("one <|assistant_end|><|assistant_end|>")
    [one] = ConversationEncoder(tiny_tokenizer, 40)([turns("x" * 50, "y")])
    assert one.fate == "dropped" and not len(one.ids)


def test_what_became_of_long_conversations_is_counted(tiny_tokenizer, tmp_path):
    fitting = [turns(f"{number}", "b") for number in range(30)]
    long = [turns("a", f"{number}", "more", "x" * 50) for number in range(20)]
    impossible = [turns("x" * 50, f"{number}") for number in range(10)]
    source = jsonl(tmp_path / "a.jsonl", fitting + long + impossible, "messages")
    given = list(read_conversations(source, "train"))
    told = []
    encoder = ConversationEncoder(tiny_tokenizer, 40)
    store = tokenize(tmp_path / "store", open_conversations(source, "train"), encoder, report=told.append)
    dropped, cut = (sum(one in kind for one in given) for kind in (impossible, long))
    assert dropped and cut and len(store) == len(given) - dropped
    assert told == [
        f"Of {len(given)} conversations, {dropped} were dropped and {cut} cut after an earlier reply,"
        " to keep within 40 tokens."
    ]


def test_a_limit_ends_it(tiny_tokenizer, tmp_path):
    corpus = open_documents("primer", "train")
    store = tokenize(tmp_path / "a", corpus, DocumentEncoder(tiny_tokenizer), max_tokens=10_000)
    assert store.meta.tokens == 10_000
    text = tiny_tokenizer.decode(store.tokens[: store.offsets[50]])
    documents = list(itertools.islice(read_documents("primer", "train"), 50))
    assert text == "".join("<|bos|>" + document for document in documents)


@pytest.fixture
def same_store():
    def contents(store):
        return {file.name: file.read_bytes() for file in store.folder.iterdir()}

    return lambda one, other: contents(one) == contents(other)


def test_the_store_does_not_depend_on_the_number_of_threads(tiny_tokenizer, tmp_path, same_store, monkeypatch):
    monkeypatch.setattr("nanochat.data.tokenization.CHUNK_CHARACTERS", 2_000)
    a = jsonl(tmp_path / "a.jsonl", [f"{number} cats sat. " * (number % 40) for number in range(500)])
    b = jsonl(tmp_path / "b.jsonl", [f"dog {number}" for number in range(100)])
    for source in (a, f"{a},{b}", f"{a}=1,{b}=2"):
        encoder = DocumentEncoder(tiny_tokenizer)
        stores = [
            tokenize(tmp_path / f"{workers}", open_documents(source, "train"), encoder, workers=workers)
            for workers in (1, 2, 7)
        ]
        assert same_store(stores[0], stores[1]) and same_store(stores[0], stores[2])
        texts = list(read_documents(a, "train")) if source == a else []
        assert all(tiny_tokenizer.decode(stores[0].tokens[slice(*stores[0].offsets[i : i + 2])][1:]) == text
                   for i, text in enumerate(texts[:50]))  # fmt: skip


def test_a_store_that_is_there_is_opened(tiny_tokenizer, tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [f"the cat {number}" for number in range(50)])
    encoder = DocumentEncoder(tiny_tokenizer)
    store = tokenize(tmp_path / "s", open_documents(source, "train"), encoder)
    written = (tmp_path / "s" / "tokens.bin").stat().st_mtime_ns
    told = []
    tokenize(tmp_path / "s", open_documents(source, "train"), encoder, report=told.append)
    assert (tmp_path / "s" / "tokens.bin").stat().st_mtime_ns == written and not told
    jsonl(tmp_path / "a.jsonl", [f"the dog {number}" for number in range(60)])
    again = tokenize(tmp_path / "s", open_documents(source, "train"), encoder)
    assert len(again) > len(store)


def test_an_error_of_the_source_is_told_as_it_is(tiny_tokenizer, tmp_path):
    source = jsonl(tmp_path / "a.jsonl", [f"the cat {number}" for number in range(3000)] + [7])
    with pytest.raises(UserError, match=r"a\.jsonl line 3001: `text` must be a string"):
        tokenize(tmp_path / "s", open_documents(source, "train"), DocumentEncoder(tiny_tokenizer))
    assert not (tmp_path / "s").exists()


@real_data
def test_real_text_to_batches(tiny_tokenizer, tmp_path):
    texts = list(itertools.islice(read_documents(str(REAL / "text" / "simple_stories"), "train"), 30))
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
    source = str(REAL / "chat" / "chatterbot")
    corpus, encoder = open_conversations(source, "train"), ConversationEncoder(tiny_tokenizer, 513)
    store = tokenize(tmp_path / "a", corpus, encoder, max_tokens=20_000)
    batches = PackedBatches(store, 4, 512, 0)
    steps = batches.n_rows // 4
    trained = sum(int((batches.batch(step).labels >= 0).sum()) for step in range(steps))
    assert trained <= store.meta.trained_tokens == int(np.sum(store.mask))
    conversations = list(itertools.islice(read_conversations(source, "train"), len(store)))
    replies = [message["content"] for one in conversations for message in one if message["role"] == "assistant"]
    labels = batches.batch(0).labels
    said = tiny_tokenizer.decode(labels[labels >= 0]).split("<|assistant_end|>")[:-1]
    assert set(said) <= set(replies) and len(said) > 10
