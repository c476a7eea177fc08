import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scripted_model import BOS, END, TOKENIZER, ScriptedModel, ids

from nanochat.inference import Delta, Engine, SamplingParams, Token, join_deltas
from nanochat.inference.transcript import Transcript, Vocabulary

VOCABULARY = Vocabulary(TOKENIZER)
V = VOCABULARY


def read(tokens: list[int], stop: tuple[str, ...] = ()) -> list[Delta]:
    """The pieces of an answer up to its end, as the engine reads them."""
    transcript, deltas = Transcript(VOCABULARY, stop), []
    for token in tokens:
        deltas += transcript.read(Token(token))
        if transcript.stopped:
            break
    return [*deltas, transcript.end("length")]


def texts(deltas: list[Delta]) -> list[str]:
    return [delta.text for delta in deltas if delta.text]


# Characters


@given(st.text())
def test_no_character_is_ever_cut(text: str) -> None:
    deltas = read(list(text.encode()))
    assert "".join(delta.text for delta in deltas) == text
    assert texts(deltas) == list(text)  # one token is one byte here


@given(st.lists(st.integers(0, 255) | st.sampled_from(list("añ€😀".encode())), max_size=30))
def test_bytes_that_are_no_text_read_as_the_tokenizer_decodes_them(tokens: list[int]) -> None:
    deltas = read(tokens)
    assert "".join(delta.text for delta in deltas) == TOKENIZER.decode(tokens)
    assert [token.id for delta in deltas for token in delta.tokens] == tokens


def test_an_unfinished_character_comes_out_at_the_end_of_its_part() -> None:
    half = "€".encode()[:2]
    deltas = read([*half, V.python_start, *b"1", V.python_end, *half])
    pieces = [(delta.type, delta.text, delta.part, delta.finish_reason) for delta in deltas if delta.text]
    assert pieces == [("text", "\ufffd", 0, None), ("python", "1", 1, None), ("text", "\ufffd", 2, "length")]


def test_every_token_comes_with_its_piece() -> None:
    deltas = read([*"é".encode(), V.python_start, *b"1", V.python_end])
    assert deltas == [
        Delta("text", "", 0, tokens=(Token(0xC3),)),
        Delta("text", "é", 0, tokens=(Token(0xA9),)),
        Delta("python", "", 1, tokens=(Token(V.python_start),)),
        Delta("python", "1", 1, tokens=(Token(ord("1")),)),
        Delta("text", "", 2, tokens=(Token(V.python_end),)),
        Delta("text", "", 2, "length"),
    ]


def test_tokens_that_stand_for_no_text_add_none() -> None:
    assert texts(read([65, 300, 66])) == ["A", "B"]


# Parts


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


# Stop strings


def before_first(text: str, stops: tuple[str, ...]) -> str:
    """The text before the stop string that is complete first (the longest of those)."""
    for end in range(len(text) + 1):
        starts = [text.find(stop) for stop in stops if stop in text[:end]]
        if starts:
            return text[: min(starts)]
    return text


stop_strings = st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple)


@given(st.text("abé", max_size=20), stop_strings)
@settings(max_examples=300)
@example("aab", ("aab", "ab"))
@example("abab", ("ababb", "b"))
def test_the_text_ends_before_the_first_stop_string_and_nothing_is_taken_back(
    text: str, stops: tuple[str, ...]
) -> None:
    deltas = read(list(text.encode()), stops)
    shown = "".join(delta.text for delta in deltas)
    assert shown == before_first(text, stops)
    assert (deltas[-1].finish_reason == "stop") == any(stop in text for stop in stops)
    seen = 0  # nothing waits that can't be the beginning of a stop string
    for delta in deltas[:-1]:
        seen += len(delta.text)
        consumed = text[: seen + max(map(len, stops))]
        assert shown.startswith(consumed[:seen])


@given(st.text("ab", max_size=12), stop_strings, st.integers(0, 12))
def test_only_what_may_begin_a_stop_string_is_held_back(text: str, stops: tuple[str, ...], at: int) -> None:
    transcript = Transcript(VOCABULARY, stops)
    shown = ""
    for n, token in enumerate(text.encode(), 1):
        shown += "".join(delta.text for delta in transcript.read(Token(token)))
        if transcript.stopped:
            return
        held = text[len(shown) : n]
        assert shown + held == text[:n]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_stop_strings_are_looked_for_in_what_the_reader_sees() -> None:
    call = [V.python_start, *b"1+1", V.python_end]
    assert join_deltas(read([*b"a", *call, *b"b1+1c"], ("+",))) == [
        {"type": "text", "text": "a"},
        {"type": "python", "text": "1+1"},
        {"type": "text", "text": "b1"},
    ]
    assert texts(read([*b"a", *call, *b"b"], ("ab",))) == ["a", "1", "+", "1", "b"]  # not across a call


def test_held_back_text_comes_out_with_the_end_a_stop_token_or_a_call() -> None:
    scripts = {(BOS, 1): [*ids("xEN"), END], (BOS, 2): ids("xEN"), (BOS, 3): [*ids("xEN"), V.python_start, *ids("1")]}
    engine = Engine(ScriptedModel(scripts), TOKENIZER)
    for prompt in scripts:
        [result] = engine.generate([list(prompt)], SamplingParams(max_new_tokens=4, stop="END"))
        assert result.text.startswith("xEN")
        assert [token.id for token in result.tokens] == result.token_ids
    cancelled = engine.add([BOS, 1], SamplingParams(stop="END"))
    for _ in range(3):
        engine.step()
    assert "".join(delta.text for _, delta in engine.cancel(cancelled)) == "EN"


def test_a_stop_string_across_tokens_in_the_engine() -> None:
    engine = Engine(ScriptedModel({(BOS, 1): [*ids("One. Two. Three."), END]}), TOKENIZER)
    deltas = list(engine.stream([BOS, 1], SamplingParams(stop=(" Thr", "o. T"))))
    assert "".join(delta.text for delta in deltas) == "One. Tw"
    assert deltas[-1].finish_reason == "stop"
    [result] = engine.generate([[BOS, 1]], SamplingParams(stop=("never", ".")))
    assert (result.text, result.token_ids, result.finish_reason) == ("One", ids("One."), "stop")
    [result] = engine.generate([[BOS, 1]], SamplingParams(max_new_tokens=4, stop="."))
    assert result.finish_reason == "stop"  # at the limit, too


def test_a_beginning_that_holds_a_stop_string_ends_there() -> None:
    engine = Engine(ScriptedModel({}), TOKENIZER)
    deltas = list(engine.stream([BOS, 1], SamplingParams(stop="b", n=2), prefix=ids("abc")))
    for index in range(2):
        own = [delta for delta in deltas if delta.index == index]
        assert "".join(delta.text for delta in own) == "a"
        assert own[-1].finish_reason == "stop"
    assert not engine.has_work
