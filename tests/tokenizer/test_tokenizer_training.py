import json
import logging
from collections import Counter
from itertools import pairwise

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.tokenizer import SPLIT_PATTERN, compression_report, train_tokenizer
from nanochat.tokenizer.byte_level import merges_of, ranks_of


def test_golden_ids():
    """Worked out by hand. Words: ab ×10, abc ×6, bc ×3, so the pairs are a+b ×16, b+c ×9. The first merge is ab = 256;
    it leaves ab+c ×6 and b+c ×3, so the second is abc = 257 and the last bc = 258. Bytes keep their values as ids and
    the nine special tokens follow: <|bos|> = 259, <|user_start|> = 260, ..., <|assistant_end|> = 263.
    """
    tokenizer = train_tokenizer(["ab"] * 10 + ["abc"] * 6 + ["bc"] * 3, 268)
    assert merges_of(ranks_of(tokenizer.backend_tokenizer)) == [(b"a", b"b"), (b"ab", b"c"), (b"b", b"c")]
    assert tokenizer.encode("abc bc abab") == [259, 257, 32, 258, 32, 256, 256]
    chat = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "bcé"}]
    assert tokenizer.apply_chat_template(chat, return_dict=False) == [259, 260, 256, 261, 262, 258, 0xC3, 0xA9, 263]


def test_every_merge_is_a_most_frequent_pair(corpus):
    """BPE training as in Sennrich et al. 2016, algorithm 1, counts everything anew for each merge; ties are free."""
    merges = merges_of(ranks_of(train_tokenizer([corpus], 400).backend_tokenizer))
    assert len(merges) == 400 - 256 - 9
    pieces = [piece.encode() for piece in regex.findall(SPLIT_PATTERN, corpus)]
    words = Counter(tuple(piece[i : i + 1] for i in range(len(piece))) for piece in pieces)
    for merge in merges:
        pairs = Counter()
        for word, times in words.items():
            for pair in pairwise(word):
                pairs[pair] += times
        assert pairs[merge] == max(pairs.values())
        merged = Counter()
        for word, times in words.items():
            merged[join_pair(word, merge)] += times
        words = merged


def join_pair(word, merge):
    parts, i = [], 0
    while i < len(word):
        both = word[i : i + 2] == merge
        parts.append(word[i] + word[i + 1] if both else word[i])
        i += 1 + both
    return tuple(parts)


def test_the_same_text_gives_the_same_tokenizer(corpus):
    first, second = (train_tokenizer(iter([corpus, "more text"]), 400) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


@given(texts=st.lists(st.text(max_size=40)).filter(any))
def test_any_text_trains(texts):
    tokenizer = train_tokenizer(texts, 290)
    assert 265 <= len(tokenizer) <= 290
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_ordinary_batch(texts)] == texts


def test_too_little_text_gives_a_smaller_vocabulary_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        tokenizer = train_tokenizer(["ab ab"], 5000)
    assert len(tokenizer) == 256 + 2 + 9  # ab and the one with a space in front
    assert tokenizer.convert_tokens_to_ids("<|output_end|>") == len(tokenizer) - 1
    assert "only 2 different merges" in caplog.text and "267 tokens, not the 5000" in caplog.text


def test_control_tokens_in_training_text_are_text():
    tokenizer = train_tokenizer(["<|bos|>hello" * 50], 300)
    assert tokenizer.encode_ordinary_batch(["<|bos|>"])[0][-1] < len(tokenizer) - 9


@pytest.mark.parametrize(
    ("texts", "vocab_size", "complaint"),
    [
        (["text"], 264, "vocab_size must be at least 265 .* got 264"),
        ([], 300, "no text to train"),
        (["", ""], 300, "no text to train"),
        ("text", 300, "put it into a list"),
        (["text", b"bytes"], 300, "must be a string, got bytes"),
        (["text \udfff"], 300, "lone surrogate .* at character 5"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(texts, vocab_size, complaint):
    with pytest.raises(UserError, match=complaint):
        train_tokenizer(texts, vocab_size)


def test_compression_report(tokenizer):
    report = compression_report(tokenizer, {"known": "The quick brown fox", "foreign": "ქართული"})
    ids = tokenizer.encode("The quick brown fox", add_special_tokens=False)
    assert report == {"known": 19 / len(ids), "foreign": 1.0}
    with pytest.raises(UserError, match="sample for 'nothing' is empty"):
        compression_report(tokenizer, {"nothing": ""})
    json.dumps(report)
