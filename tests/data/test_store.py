import itertools
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.data.store import TokenStore, tokenizer_fingerprint

documents = st.lists(st.lists(st.integers(0, 99), min_size=2, max_size=20), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents, st.booleans(), st.sampled_from([100, 65_536, 65_537]))
def test_what_is_written_is_read(tmp_path, rows, masked, vocab_size):
    masks = [[0] * (len(row) - 1) + [1] if masked else None for row in rows]
    store = TokenStore.write(tmp_path / "store", zip(rows, masks), vocab_size)
    assert len(store) == len(rows)
    assert store.tokens.dtype == (np.uint16 if vocab_size <= 65_536 else np.uint32)
    for i, row in enumerate(rows):
        assert store.tokens[store.offsets[i] : store.offsets[i + 1]].tolist() == row
    assert store.meta.trained_tokens == (len(rows) if masked else sum(map(len, rows)))
    if masked:
        assert store.mask.tolist() == list(itertools.chain.from_iterable(masks))
    else:
        assert store.mask is None and not (tmp_path / "store" / "mask.bin").exists()


def test_a_limit_ends_an_endless_source(tmp_path):
    def endless(mask):
        while True:
            yield [1, 2, 3, 4], mask

    assert TokenStore.write(tmp_path / "a", endless(None), 9, max_tokens=10).meta.tokens == 10
    chats = TokenStore.write(tmp_path / "b", endless([0, 0, 1, 1]), 9, max_tokens=10)
    assert chats.meta.tokens == 12 and len(chats) == 3  # a conversation is never cut


def test_bytes_of_text_are_counted_and_the_tokenizer_named(tmp_path, tiny_tokenizer):
    text = "the cat, naïve"
    ids = [tiny_tokenizer.bos_token_id, *tiny_tokenizer.encode_ordinary_batch([text])[0]]
    mark = tokenizer_fingerprint(tiny_tokenizer)
    store = TokenStore.write(
        tmp_path / "a", [(ids, None)], 280, token_bytes=tiny_tokenizer.token_bytes(), fingerprint=mark
    )
    assert store.meta.text_bytes == len(text.encode())
    assert TokenStore.open(tmp_path / "a").meta.fingerprint == mark
    assert len(mark) == 16


def test_a_failed_write_leaves_the_old_store(tmp_path):
    def broken():
        yield [1, 2], None
        raise UserError("bad line")

    TokenStore.write(tmp_path / "a", [([7, 8, 9], None)], 10)
    with pytest.raises(UserError, match="bad line"):
        TokenStore.write(tmp_path / "a", broken(), 10)
    assert TokenStore.open(tmp_path / "a").tokens.tolist() == [7, 8, 9]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    with pytest.raises(UserError, match="the source gave no documents"):
        TokenStore.write(tmp_path / "b", [], 10)


@pytest.mark.parametrize(
    "rows",
    [
        [([], None)],
        [([10], None)],
        [([-1], None)],
        [([1, 2], [0, 0])],  # nothing to learn: its loss would be 0/0
        [([1, 2], [1, 0])],  # the first token is never predicted
        [([1, 2], [0, 1, 1])],
        [([1, 2], [0, 1]), ([1, 2], None)],
    ],
)
def test_what_must_not_be_stored(tmp_path, rows):
    with pytest.raises(ValueError, match=r"document|mask"):
        TokenStore.write(tmp_path / "a", rows, 10)
    assert not list(tmp_path.iterdir())


def test_damage_is_told_with_the_remedy(tmp_path):
    folder = tmp_path / "a"
    with pytest.raises(UserError, match=r"no token store in .*a \(no meta\.json\)"):
        TokenStore.open(folder)

    def damage(name, content):
        TokenStore.write(folder, [([1, 2, 3], [0, 1, 1]), ([4, 5], [0, 1])], 10)
        (folder / name).write_bytes(content)
        return pytest.raises(UserError, match=rf"{name}.*delete .*a and tokenize again")

    with damage("tokens.bin", b"1234567"):
        TokenStore.open(folder)
    with damage("mask.bin", b""):
        TokenStore.open(folder)
    with damage("offsets.bin", np.array([0, 3], np.int64).tobytes()):
        TokenStore.open(folder)
    with damage("offsets.bin", np.array([0, 5, 5], np.int64).tobytes()):
        TokenStore.open(folder)
    with damage("meta.json", b'{"format": 1'):
        TokenStore.open(folder)
    with damage("meta.json", b'{"format": 1}'):
        TokenStore.open(folder)
    with damage("tokens.bin", b""):
        (folder / "tokens.bin").unlink()
        TokenStore.open(folder)
    TokenStore.write(folder, [([1, 2, 3], None)], 10)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"format": 2}))
    with pytest.raises(UserError, match="store format 2, this version reads 1: delete"):
        TokenStore.open(folder)
