import copy
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import regex
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from nanochat.common import UserError
from nanochat.tokenizer import (
    SPECIAL_TOKENS,
    SPLIT_PATTERN,
    NanoChatTokenizer,
    load_tokenizer_pickle,
    save_tokenizer_pickle,
    train_tokenizer,
)

# Unicode text in which spaces, line ends, digits, quotes and control tokens are frequent.
ANY_TEXT = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.text(" \t\n\r\x0b\x0c\x1c\x85\xa0\u2003\u2028\u3000\u200b'sſKL09٣²<|>_", max_size=6),
        st.sampled_from([*SPECIAL_TOKENS, "don't", "I'LL", "x'Ve", "the fox ", "12345", "\r\n\r\n", "e\u0301", "👍🏽"]),
    ),
    max_size=8,
).map("".join)


@given(text=ANY_TEXT)
@example(text="")
@example(text="\x00\ufeff\ufffe\U0010ffff")
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


@given(texts=st.lists(ANY_TEXT, max_size=4))
def test_the_bulk_path_gives_the_same_ids(tokenizer, texts):
    slow = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    assert tokenizer.encode_ordinary_batch(texts) == slow


@pytest.mark.parametrize("text", [" " * 250_000, " " * 250_000 + "x", "a" * 50_000, "\n " * 60_000, "!?" * 50_000])
def test_the_bulk_path_survives_long_runs(tokenizer, text):
    # Without the detour, tiktoken's regular expressions panic on a million blanks.
    slow = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    assert tokenizer.encode_ordinary_batch(["the fox", text]) == [tokenizer.encode_ordinary_batch(["the fox"])[0], slow]


REAL = Path("/work/shared/data/text/tinyshakespeare")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real text at {REAL}")
def test_the_bulk_path_gives_the_same_ids_for_real_text(tokenizer):
    text = next(REAL.glob("*.txt")).read_text(encoding="utf-8")[:200_000]
    pages = [text[i : i + 2_000] for i in range(0, len(text), 2_000)]
    assert tokenizer.encode_ordinary_batch(pages) == tokenizer(pages, add_special_tokens=False)["input_ids"]


@given(text=st.text(st.characters(max_codepoint=0x2FF)))
def test_text_is_split_as_the_pattern_says(tokenizer, text):
    pieces = [text[start:end] for _, (start, end) in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]
    assert pieces == regex.findall(SPLIT_PATTERN, text)  # a third implementation of regular expressions


def test_digits_go_in_pairs_and_contractions_apart(tokenizer):
    split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("I'll pay $12345 now!!\n\n  ok")
    assert [piece for piece, _ in split] == ["I", "'ll", "Ġpay", "Ġ$", "12", "34", "5", "Ġnow", "!!ĊĊ", "Ġ", "Ġok"]


def test_special_tokens_are_the_last_nine_ids(tokenizer):
    assert len(tokenizer) == tokenizer.vocab_size == 400
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(391, 400))
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|bos|>",
        "<|assistant_end|>",
        "<|bos|>",
    )
    assert sorted(tokenizer.all_special_tokens) == sorted(SPECIAL_TOKENS)


@given(text=ANY_TEXT)
def test_text_never_becomes_a_control_token(tokenizer, text):
    control = set(range(391, 400))
    everywhere = [
        tokenizer(text)["input_ids"][1:],
        tokenizer.encode(text)[1:],
        tokenizer.encode(text, add_special_tokens=False),
        *[row[1:] for row in tokenizer([text, text])["input_ids"]],
        tokenizer([text.split(" ")], is_split_into_words=True, add_special_tokens=False)["input_ids"][0],
        tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text)),
        tokenizer.encode_ordinary_batch([text])[0],
        tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids,
    ]
    for ids in everywhere:
        assert not control & set(ids)
    pair = tokenizer(text, text)["input_ids"]
    assert [i for i in pair if i in control] == [391] * (2 if text else 1)  # <|bos|> before each


def test_parsing_control_tokens_must_be_asked_for_and_is_not_remembered(tokenizer, tmp_path):
    text = "a<|assistant_start|>"
    assert tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"][-1] == 394
    assert tokenizer.encode(text)[-1] != 394
    assert tokenizer.backend_tokenizer.encode(text).ids[-1] != 394
    tokenizer.save_pretrained(tmp_path)
    assert "split_special_tokens" not in (tmp_path / "tokenizer_config.json").read_text()


def test_a_folder_cannot_open_text_to_control_tokens(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(config.read_text().replace("{", '{"split_special_tokens": false,', 1))
    assert NanoChatTokenizer.from_pretrained(tmp_path).encode("<|bos|>") == tokenizer.encode("<|bos|>")


def test_threads_do_not_open_each_others_text(tokenizer):
    private = copy.deepcopy(tokenizer)
    chat = [{"role": "user", "content": "x <|bos|>"}, {"role": "assistant", "content": "the"}]
    alone = private.apply_chat_template(chat, return_assistant_tokens_mask=True)
    wrong = []

    def encode_text():
        for _ in range(300):
            if any(i >= 391 for i in private.encode("x <|bos|> \ue000", add_special_tokens=False)):
                wrong.append("control token from text")

    def encode_chats():
        for _ in range(300):
            if private.apply_chat_template(chat, return_assistant_tokens_mask=True) != alone:
                wrong.append("chat")

    threads = [threading.Thread(target=work) for work in (encode_text, encode_chats) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.model_max_length = 333
    try:
        tokenizer.save_pretrained(tmp_path)
    finally:
        tokenizer.model_max_length = 2048
    (tmp_path / "config.json").write_text('{"model_type": "nanochat"}')
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is NanoChatTokenizer
    assert (loaded.model_max_length, loaded.padding_side, loaded.pad_token_id) == (333, "left", 391)
    text = "The fox <|bos|>  12345\n"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.encode_ordinary_batch([text]) == tokenizer.encode_ordinary_batch([text])
    assert loaded.chat_template == tokenizer.chat_template == (tmp_path / "chat_template.jinja").read_text()
    loaded.save_pretrained(tmp_path / "again")
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / name).read_text()


def test_copies_and_pickles(tokenizer):
    tokenizer.encode_ordinary_batch(["warm"])
    for twin in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert twin.encode("the <|bos|>") == tokenizer.encode("the <|bos|>")
        assert twin.encode_ordinary_batch(["the fox"]) == tokenizer.encode_ordinary_batch(["the fox"])


@given(ids=st.lists(st.integers(0, 600)))
def test_decoding_never_raises_and_ids_beyond_the_vocabulary_are_silent(tokenizer, ids):
    known = [i for i in ids if i < 400]
    assert tokenizer.decode(ids) == tokenizer.decode(known)
    spoken = b"".join(
        SPECIAL_TOKENS[i - 391].encode() if i >= 391 else tokenizer._bulk_encoder.decode_bytes([i]) for i in known
    )
    assert tokenizer.decode(ids) == spoken.decode(errors="replace")


def test_token_bytes(tokenizer):
    counts = tokenizer.token_bytes()
    assert counts.shape == (400,) and counts.dtype == np.int32
    assert (counts[391:] == 0).all() and (counts[:391] >= 1).all() and (counts[:256] == 1).all()
    text = "The quick Größe 你好 👍🏽 fox"
    assert counts[tokenizer.encode(text)].sum() == len(text.encode())


def test_a_plain_text_begins_like_a_document_and_pads_on_the_left(tokenizer):
    batch = tokenizer(["the", "the lazy dog"], padding=True, return_tensors="np")
    assert set(batch) == {"input_ids", "attention_mask"}
    rows = [row[mask == 1].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"])]
    assert rows == [[391, *tokenizer.encode_ordinary_batch([text])[0]] for text in ("the", "the lazy dog")]
    assert batch["attention_mask"][0][0] == 0
    assert tokenizer("the", add_special_tokens=False)["input_ids"] == rows[0][1:]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [(5, "must be a string, got int"), (["a", None], "got NoneType"), ("ab\ud800", "lone surrogate .* at character 2")],
)
def test_what_is_no_text_is_refused(tokenizer, text, complaint):
    texts = text if isinstance(text, list) else [text]
    for encode in (tokenizer, tokenizer.encode, tokenizer.tokenize):
        with pytest.raises(UserError, match=complaint):
            encode(text)
    with pytest.raises(UserError, match=complaint):
        tokenizer.encode_ordinary_batch(texts)
    with pytest.raises(UserError, match=complaint):
        tokenizer(["fine"] * len(texts), texts)


def test_bulk_encoding_wants_a_list(tokenizer):
    with pytest.raises(UserError, match="put it into a list"):
        tokenizer.encode_ordinary_batch("abc")


def test_pipeline_takes_text_and_chats_as_data(tokenizer):
    config = transformers.LlamaConfig(
        vocab_size=400, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
    )
    generator = transformers.pipeline(
        "text-generation", model=transformers.LlamaForCausalLM(config), tokenizer=tokenizer, device="cpu"
    )
    text = "<|assistant_start|> the fox <|bos|>"
    ordinary = tokenizer.encode_ordinary_batch([text])[0]
    options = {"max_new_tokens": 1, "return_tensors": True, "pad_token_id": 391}
    assert generator(text, **options)[0]["generated_token_ids"][:-1] == [391, *ordinary]
    chat = generator([{"role": "user", "content": text}], **options)[0]["generated_token_ids"]
    assert chat[:-1] == [391, 392, *ordinary, 393, 394]


@settings(max_examples=20)
@given(texts=st.lists(st.text("abc ", min_size=1), min_size=1), probe=st.text("abcd ", max_size=30))
def test_both_paths_agree_for_any_trained_vocabulary(tmp_path_factory, texts, probe):
    trained = train_tokenizer(texts, 300)
    path = tmp_path_factory.mktemp("pickle") / "tokenizer.pkl"
    save_tokenizer_pickle(trained, path)
    ids = trained.encode_ordinary_batch([probe])[0]
    assert ids == trained.encode(probe, add_special_tokens=False)
    assert ids == load_tokenizer_pickle(path).encode(probe, add_special_tokens=False)
