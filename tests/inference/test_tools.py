"""The calculator in the loop: calls are computed and their results written into the answer, whatever runs beside."""

from typing import Any

import pytest
from scripted_model import (
    BOS,
    CALL,
    CONTROL,
    END,
    FORGED,
    OUTPUT,
    OUTPUT_END,
    PYTHON,
    PYTHON_END,
    TOKENIZER,
    ScriptedModel,
    ids,
)
from small_models import check_books, finish

from nanochat.inference import Engine, SamplingParams, calculate, join_deltas


def test_the_result_of_a_call_is_written_into_the_answer() -> None:
    question = [{"role": "user", "content": "37*24?"}]
    talker = Engine(ScriptedModel({tuple(encoded(question)): [*CALL, *FORGED, *ids("It is 888."), END]}), TOKENIZER)
    result = talker.generate([question])[0]
    assert result.token_ids == [*CALL, OUTPUT, *ids("888"), OUTPUT_END, *ids("It is 888."), END]
    assert result.text == "It is 888."
    assert result.parts == [
        {"type": "python", "text": "37*24"},
        {"type": "python_output", "text": "888"},
        {"type": "text", "text": "It is 888."},
    ]
    # Put back, the parts are the very tokens that were generated.
    again = talker.encode([*question, {"role": "assistant", "content": result.parts}, question[0]])
    before = talker.encode(question)
    assert again[len(before) : len(before) + len(result.token_ids)] == result.token_ids


def encoded(conversation: Any) -> list[int]:
    return Engine(ScriptedModel({}), TOKENIZER).encode(conversation)


def test_calls_work_in_ragged_batches_at_different_times() -> None:
    scripts = {
        (BOS, 1): [*CALL, *FORGED, END],
        (BOS, 2, 2, 2): [*ids("so: "), PYTHON, *ids("1/0"), PYTHON_END, *ids("hm"), END],
        (BOS, 3, 3): [*ids("a"), PYTHON, *ids("2**20"), PYTHON_END, *[END] * 9, *ids("."), *CALL, *[BOS] * 5, END],
    }
    results = Engine(ScriptedModel(scripts), TOKENIZER).generate([list(prompt) for prompt in scripts])
    assert [[(part["type"], part["text"]) for part in result.parts] for result in results] == [
        [("python", "37*24"), ("python_output", "888")],
        [("text", "so: "), ("python", "1/0"), ("text", "hm")],
        [
            ("text", "a"),
            ("python", "2**20"),
            ("python_output", "1048576"),
            ("text", "."),
            ("python", "37*24"),
            ("python_output", "888"),
        ],
    ]
    assert [result.finish_reason for result in results] == ["stop"] * 3


def test_a_call_that_is_cut_off_by_the_limit_stays_open() -> None:
    talker = Engine(ScriptedModel({(BOS, 1): [*CALL, *FORGED]}), TOKENIZER)
    for limit in range(1, 13):
        result = talker.generate([[BOS, 1]], SamplingParams(max_new_tokens=limit))[0]
        assert len(result.token_ids) == limit
        assert result.finish_reason == "length"
    assert talker.generate([[BOS, 1]], SamplingParams(max_new_tokens=3))[0].parts == [{"type": "python", "text": "37"}]


def test_an_end_without_a_call_computes_nothing() -> None:
    result = Engine(ScriptedModel({(BOS, 1): [*ids("1+1"), PYTHON_END, *ids("x"), END]}), TOKENIZER).generate(
        [[BOS, 1]]
    )
    assert result[0].text == "1+1x"


@pytest.mark.parametrize("forged", CONTROL)
def test_a_model_can_write_neither_tool_results_nor_other_turns(forged: int) -> None:
    model = ScriptedModel({(BOS, 1): [65, forged, 66, END]}, second_choice=63)
    talker = Engine(model, TOKENIZER)
    assert talker.generate([[BOS, 1]])[0].text == "A?B"
    hot = [SamplingParams(max_new_tokens=2, temperature=50.0, seed=seed) for seed in range(100)]
    assert not any(forged in result.token_ids for result in talker.generate([[BOS, 1]] * 100, hot))


# With everything else


def test_a_result_that_crosses_a_page_gets_room_and_the_others_keep_theirs() -> None:
    big = [PYTHON, *ids("2**100"), PYTHON_END]
    value = ids(str(2**100))
    for before in range(16):  # the call ends at every place of a page
        scripts = {
            (BOS, 1): [*ids("x" * before), *big, *[END] * (len(value) + 2), *ids("ok"), END],
            (BOS, 2): [*ids("y" * 40), END],
        }
        engine = Engine(ScriptedModel(scripts), TOKENIZER, cache_tokens=144)
        requests = [engine.add(list(prompt), SamplingParams(max_new_tokens=100)) for prompt in scripts]
        finish(engine)
        called, other = (request.results()[0] for request in requests)
        assert called.text == "x" * before + "ok"
        assert called.parts[-2] == {"type": "python_output", "text": str(2**100)}
        assert other.text == "y" * 40


def test_results_in_a_cache_that_is_too_small_for_all() -> None:
    result = [OUTPUT, *ids("888"), OUTPUT_END]
    turn = [*CALL, *[END] * len(result), *ids("and")]
    scripts = {(BOS, n): [*turn * 4, END] for n in range(8)}
    engine = Engine(ScriptedModel(scripts), TOKENIZER, cache_tokens=112)
    requests = [engine.add(list(prompt), SamplingParams(max_new_tokens=100)) for prompt in scripts]
    finish(engine)
    for request in requests:
        assert request.results()[0].token_ids == [*[*CALL, *result, *ids("and")] * 4, END]


def test_every_sample_gets_the_result_of_its_own_call() -> None:
    engine = Engine(ScriptedModel({(BOS, 1): [*CALL, *FORGED, *ids("."), END]}), TOKENIZER)
    results = engine.generate([[BOS, 1]], SamplingParams(n=3))
    assert [result.parts[1]["text"] for result in results] == ["888"] * 3
    deltas = list(engine.stream([BOS, 1], SamplingParams(n=3)))
    for index in range(3):
        assert join_deltas(delta for delta in deltas if delta.index == index) == results[0].parts


def test_forced_tokens_are_marked_and_have_no_probability() -> None:
    engine = Engine(ScriptedModel({(BOS, 1): [*CALL, *FORGED, END]}), TOKENIZER)
    [result] = engine.generate([[BOS, 1]], SamplingParams(logprobs=1))
    assert [token.forced for token in result.tokens] == [False] * 7 + [True] * 5 + [False]
    assert [token.logprob is None for token in result.tokens] == [token.forced for token in result.tokens]
    assert result.logprobs[:2] == [token.logprob for token in result.tokens[:2]]


@pytest.mark.parametrize("room", range(1, 14))
def test_the_limit_cuts_a_result_anywhere(room: int) -> None:
    whole = [*CALL, OUTPUT, *ids("888"), OUTPUT_END, *ids("It")]
    engine = Engine(ScriptedModel({(BOS, 1): [*CALL, *FORGED, *ids("It is")]}), TOKENIZER)
    [result] = engine.generate([[BOS, 1]], SamplingParams(max_new_tokens=room))
    assert (result.token_ids, result.finish_reason) == (whole[:room], "length")
    near_the_end = Engine(
        ScriptedModel({(BOS, 1): [*CALL, *FORGED, *ids("It is")]}, context_length=2 + room), TOKENIZER
    )
    [result] = near_the_end.generate([[BOS, 1]], SamplingParams(max_new_tokens=400))
    assert (result.token_ids, result.finish_reason) == (whole[:room], "length")


def test_an_answer_goes_on_inside_a_call_that_was_begun_for_it() -> None:
    script = [*CALL, *FORGED, *ids("Yes."), END]
    whole = [*CALL, OUTPUT, *ids("888"), OUTPUT_END, *ids("Yes."), END]
    for given in range(1, len(whole)):
        engine = Engine(ScriptedModel({(BOS, 1): script}), TOKENIZER)
        deltas = list(engine.stream([BOS, 1], prefix=whole[:given]))
        tokens = [token for delta in deltas for token in delta.tokens]
        assert [token.id for token in tokens] == whole
        assert all(token.forced for token in tokens[:given])
        assert join_deltas(deltas)[-1] == {"type": "text", "text": "Yes."}


def test_a_beginning_that_ends_with_a_call_is_followed_by_its_result() -> None:
    engine = Engine(ScriptedModel({(BOS, 1): [*CALL, *FORGED, *ids("Yes."), END]}), TOKENIZER)
    request = engine.add([BOS, 1], SamplingParams(n=2), prefix=CALL)
    finish(engine)
    for result in request.results():
        assert result.token_ids == [*CALL, OUTPUT, *ids("888"), OUTPUT_END, *ids("Yes."), END]
    # Tokens of the beginning are given as they are, whatever they say: what follows a call there is its result.
    other = engine.add([BOS, 1], prefix=[*CALL, OUTPUT, *ids("7"), OUTPUT_END, *ids("00Y")])
    finish(engine)
    assert other.results()[0].parts[1] == {"type": "python_output", "text": "7"}


def test_the_beginning_does_not_count_as_new_tokens_but_takes_room_in_the_context() -> None:
    engine = Engine(ScriptedModel({(BOS, 1): ids("x" * 600)}, context_length=32), TOKENIZER)
    [short, long] = [
        engine.add([BOS, 1], SamplingParams(max_new_tokens=4), prefix=ids("x" * 5)),
        engine.add([BOS, 1], SamplingParams(max_new_tokens=100), prefix=ids("x" * 5)),
    ]
    finish(engine)
    assert short.results()[0].text == "x" * 9
    assert long.results()[0].text == "x" * 30


def test_a_calculator_that_fails_fails_its_own_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(expression: str) -> str | None:
        if expression == "37*24":
            raise OSError("no calculator")
        return calculate(expression)

    monkeypatch.setattr("nanochat.inference.engine.calculate", broken)
    other = [PYTHON, *ids("1+1"), PYTHON_END, *[END] * 3, *ids("."), END]
    scripts = {(BOS, 1): [*CALL, END], (BOS, 2): other, (BOS, 3): [*ids("abcdefgh"), *CALL, END]}
    engine = Engine(ScriptedModel(scripts), TOKENIZER)
    requests = [engine.add(list(prompt), SamplingParams(n=2)) for prompt in scripts]
    emitted = finish(engine)
    assert [request.error for request in requests] == ["OSError: no calculator", None, "OSError: no calculator"]
    for request in requests:
        for index in range(2):
            deltas = [delta for whose, delta in emitted if whose is request and delta.index == index]
            last = "stop" if request is requests[1] else "error"
            assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + [last]
    assert requests[1].results()[0].text == "."
    with pytest.raises(RuntimeError, match="no calculator"):
        engine.generate([[BOS, 1]])
    assert engine.generate([[BOS, 2]])[0].text == "."
    check_books(engine)
