import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_model import byte_tokenizer

from nanochat.inference import Delta, join_deltas
from nanochat.inference.transcript import Transcript, Vocabulary

TOKENIZER = byte_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER)
V = VOCABULARY


def read(tokens: list[int]) -> list[Delta]:
    transcript = Transcript(VOCABULARY)
    return [delta for token in tokens for delta in transcript.read(token)] + [transcript.end("stop")]


@given(st.text())
def test_no_character_is_ever_cut(text: str) -> None:
    deltas = read(list(text.encode()))
    assert "".join(delta.text for delta in deltas) == text
    assert [delta.text for delta in deltas if delta.text] == list(text)  # one token is one byte here


@given(st.lists(st.integers(0, 255) | st.sampled_from(list("añ€😀".encode())), max_size=30))
def test_bytes_that_are_no_text_read_as_the_tokenizer_decodes_them(tokens: list[int]) -> None:
    assert "".join(delta.text for delta in read(tokens)) == TOKENIZER.decode(tokens)


def test_an_unfinished_character_comes_out_at_the_end_of_its_part() -> None:
    half = "€".encode()[:2]
    deltas = read([*half, V.python_start, *b"1", V.python_end, *half])
    assert deltas == [
        Delta("text", "\ufffd", 0),
        Delta("python", "1", 1),
        Delta("text", "\ufffd", 2, "stop"),
    ]


def test_parts_come_in_order_and_two_calls_stay_two() -> None:
    call = [V.python_start, *b"1/0", V.python_end]
    output = [V.output_start, *b"9", V.output_end]
    parts = join_deltas(read([*b"Hm. ", *call, *call, *output, *b" ok"]))
    assert parts == [
        {"type": "text", "text": "Hm. "},
        {"type": "python", "text": "1/0"},
        {"type": "python", "text": "1/0"},
        {"type": "python_output", "text": "9"},
        {"type": "text", "text": " ok"},
    ]


@pytest.mark.parametrize("tokens", [[], [V.python_start, V.python_end], [V.python_end]])
def test_an_answer_that_says_nothing_is_one_empty_text(tokens: list[int]) -> None:
    assert join_deltas(read(tokens)) == [{"type": "text", "text": ""}]
