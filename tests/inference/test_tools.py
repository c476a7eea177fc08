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

from nanochat.inference import Engine, SamplingParams


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
