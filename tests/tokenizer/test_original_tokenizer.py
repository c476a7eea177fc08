import io
import os
import pickle
import pickletools

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.tokenizer import SPECIAL_TOKENS, load_tokenizer_pickle, save_tokenizer_pickle
from nanochat.tokenizer.byte_level import ranks_of

# Not ours: other bytes order, other digits, as a foreign trainer may write them.
RANKS = {bytes([255 - byte]): byte for byte in range(256)}
RANKS |= {token: 256 + i for i, token in enumerate([b"ab", b"cd", b"abcd", b" ab", b"aa", b"aaa", b"\xc3\xa9", b"12"])}
PATTERN = r"\p{L}+|\p{N}{1,3}|\s+(?!\S)|[^\p{L}\p{N}]+"


def original(ranks=RANKS, special_tokens=None):
    if special_tokens is None:
        special_tokens = {token: len(ranks) + i for i, token in enumerate(SPECIAL_TOKENS)}
    return tiktoken.Encoding("rustbpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special_tokens)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokenizer.pkl"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(path, protocol):
    path.write_bytes(pickle.dumps(original(), protocol=protocol))
    tokenizer = load_tokenizer_pickle(path)
    assert len(tokenizer) == len(RANKS) + 9
    text = "abcd ab 1234 éaaaa<|bos|>"
    assert tokenizer.encode(text, add_special_tokens=False) == original().encode_ordinary(text)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    path = tmp_path_factory.mktemp("original") / "tokenizer.pkl"
    path.write_bytes(pickle.dumps(original()))
    return load_tokenizer_pickle(path)


@given(text=st.text(st.one_of(st.sampled_from("abcdé 12\n<|>"), st.characters(exclude_categories=["Cs"]))))
def test_ids_are_those_of_tiktoken(loaded, text):
    ids = original().encode_ordinary(text)
    assert loaded.encode(text, add_special_tokens=False) == ids
    assert loaded.encode_ordinary_batch([text]) == [ids]
    parsed = loaded.encode(text, add_special_tokens=False, split_special_tokens=False)
    assert parsed == original().encode(text, allowed_special="all")


def test_written_pickles_open_in_tiktoken(tokenizer, path):
    save_tokenizer_pickle(tokenizer, path)
    encoding = pickle.loads(path.read_bytes())
    assert type(encoding) is tiktoken.Encoding
    assert encoding.n_vocab == len(tokenizer)
    text = "The quick <|bos|> Größe 12345"
    assert encoding.encode_ordinary(text) == tokenizer.encode(text, add_special_tokens=False)
    assert encoding.encode_single_token("<|output_end|>") == len(tokenizer) - 1
    again = load_tokenizer_pickle(path)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert ranks_of(again.backend_tokenizer) == ranks_of(tokenizer.backend_tokenizer)


class Malicious:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, os.mkdir, eval, exec, getattr, pickle.loads])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_malicious_pickle_does_nothing(path, tmp_path, function, hidden):
    victim = tmp_path / "victim"
    argument = {os.mkdir: str(victim), eval: f"__import__('os').mkdir({str(victim)!r})"}.get(
        function, f"mkdir {victim}"
    )
    bomb = Malicious(function, argument)
    # Hidden where a real file has its pattern: the Encoding around it is in order.
    path.write_bytes(pickle.dumps([original(), bomb] if hidden else bomb))
    with pytest.raises(UserError, match=r"refused, because it asks for .*nothing was executed"):
        load_tokenizer_pickle(path)
    assert not victim.exists()


def test_submodules_of_what_is_allowed_are_refused(path):
    for name in (b"Encoding.__init__.__globals__", b"functools.partial", b"_tiktoken.CoreBPE"):
        path.write_bytes(b"\x80\x04\x8c\x0dtiktoken.core\x8c" + bytes([len(name)]) + name + b"\x93.")
        with pytest.raises(UserError, match="refused"):
            load_tokenizer_pickle(path)


def test_codecs_are_limited_to_what_bytes_need(path):
    stream = io.BytesIO(pickle.dumps(original(), protocol=2))
    assert any(argument == "_codecs encode" for _, argument, _ in pickletools.genops(stream))
    path.write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.")
    with pytest.raises(UserError, match="holds no tiktoken Encoding"):
        load_tokenizer_pickle(path)


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", pickle.dumps(original())[:500], b"\x80\x04N", b"0", b"\x80\x04]]R."]
)
def test_broken_files_are_named(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.pkl"):
        load_tokenizer_pickle(path)


def test_a_missing_file_is_named(path):
    with pytest.raises(UserError, match=r"no tokenizer pickle at .*tokenizer\.pkl"):
        load_tokenizer_pickle(path)


def _rebuild(state):
    """A pickle of an Encoding with any state at all."""
    header = b"\x80\x04\x8c\x0dtiktoken.core\x8c\x08Encoding\x93)\x81"
    return header + pickle.dumps(state, protocol=4)[2:-1] + b"b."


STATE = {"name": "x", "pat_str": PATTERN, "mergeable_ranks": RANKS, "special_tokens": original()._special_tokens}


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"special_tokens": {"<|endoftext|>": len(RANKS)}}, "special tokens must be"),
        ({"special_tokens": None}, "lacks one of"),
        ({"pat_str": 5}, "lacks one of"),
        ({"pat_str": "("}, "no regular expression"),
        ({"mergeable_ranks": {"a": 0}}, "must map bytes to integers"),
        ({"mergeable_ranks": {b"a": True}}, "must map bytes to integers"),
    ],
)
def test_wrong_states_are_refused(path, change, complaint):
    path.write_bytes(_rebuild(STATE))
    assert len(load_tokenizer_pickle(path)) == len(RANKS) + 9
    path.write_bytes(_rebuild(STATE | change))
    with pytest.raises(UserError, match=complaint):
        load_tokenizer_pickle(path)


@pytest.mark.parametrize(
    ("ranks", "complaint"),
    [
        ({token: rank + 1 for token, rank in RANKS.items()}, "must be 0 to 263, each once"),
        ({token: rank for token, rank in RANKS.items() if rank} | {b"zzz": 0}, "byte 255 is missing"),
        (RANKS | {b"xyz": len(RANKS)}, r"token 264 \(b'xyz'\) is not the merge of two earlier tokens"),
        (RANKS | {b"": len(RANKS)}, "is not the merge"),
    ],
)
def test_vocabularies_that_are_no_bpe_are_refused(path, ranks, complaint):
    special = {token: len(ranks) + i for i, token in enumerate(SPECIAL_TOKENS)}
    path.write_bytes(_rebuild(STATE | {"mergeable_ranks": ranks, "special_tokens": special}))
    with pytest.raises(UserError, match=complaint):
        load_tokenizer_pickle(path)


def test_a_pickle_by_reference_has_no_vocabulary(path):
    path.write_bytes(_rebuild("gpt2"))
    with pytest.raises(UserError, match="no tiktoken Encoding with its own vocabulary"):
        load_tokenizer_pickle(path)
