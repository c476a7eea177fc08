import math
from typing import Any

import pytest

from nanochat.common import UserError
from nanochat.inference import SamplingParams


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": 2.5}, "got 2.5"),
        ({"max_new_tokens": True}, "got True"),
        ({"temperature": -1}, "temperature must be 0 .greedy. or from 0.0001 to 10000, got -1"),
        ({"temperature": math.nan}, "got nan"),
        ({"temperature": math.inf}, "got inf"),
        ({"temperature": "hot"}, "got 'hot'"),
        ({"temperature": None}, "got None"),
        ({"top_k": 0}, "top_k must be .* got 0"),
        ({"top_k": 1.5}, "got 1.5"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, .* got 0.0"),
        ({"top_p": 1.1}, "got 1.1"),
        ({"min_p": -0.1}, "min_p must be from 0 to 1, got -0.1"),
        ({"min_p": 1.1}, "min_p must be from 0 to 1, got 1.1"),
        ({"min_p": math.nan}, "got nan"),
        ({"repetition_penalty": 0}, "repetition_penalty must be from 0.01 to 100, got 0"),
        ({"repetition_penalty": "1"}, "got '1'"),
        ({"presence_penalty": 2.1}, "presence_penalty must be from -2 to 2, got 2.1"),
        ({"frequency_penalty": -3}, "frequency_penalty must be from -2 to 2, got -3"),
        ({"logit_bias": [1]}, r"logit_bias must map token ids to numbers, like \{42: -100\}, got \[1\]"),
        ({"logit_bias": {"a": 1}}, "has the key 'a'"),
        ({"logit_bias": {3: 101}}, "logit_bias of token 3 must be from -100 to 100, got 101"),
        ({"logit_bias": {3: None}}, "got None"),
        ({"seed": -1}, "seed must be .* got -1"),
        ({"seed": 2**63}, "seed must be"),
        ({"seed": 1.0}, "got 1.0"),
        ({"stop": ""}, "stop must be a string or several, none of them empty"),
        ({"stop": ["a", ""]}, "none of them empty"),
        ({"stop": 3}, "got 3"),
        ({"stop": [b"a"]}, "got .b'a'."),
        ({"stop_token_ids": 3}, r"stop_token_ids must be token ids, like \(3, 7\), got 3"),
        ({"stop_token_ids": 3.5}, "got 3.5"),
        ({"stop_token_ids": ["a"]}, "got .'a'."),
        ({"stop_token_ids": [True]}, "got .True."),
        ({"n": 0}, "n must be a whole number from 1 to 128, got 0"),
        ({"n": 129}, "got 129"),
        ({"logprobs": -1}, "logprobs must be a whole number from 0 to 20, got -1"),
        ({"logprobs": 21}, "got 21"),
        ({"logprobs": True}, "got True"),
    ],
)
def test_impossible_parameters_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplingParams(**wrong)


def test_one_stop_string_is_one_and_lists_become_tuples() -> None:
    assert SamplingParams(stop="end").stop == ("end",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
    assert SamplingParams(stop_token_ids=[3, 4]).stop_token_ids == (3, 4)  # type: ignore[arg-type]
