import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.inference import SamplingParams
from nanochat.inference.sampling import sample

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 3.0, -math.inf])


def frequencies(params: SamplingParams, logits: torch.Tensor = LOGITS, draws: int = 20_000) -> torch.Tensor:
    """How often each token is drawn, (V,)."""
    generator = params.generator()
    rows = 500
    counts = torch.zeros(len(logits))
    for _ in range(draws // rows):
        tokens = sample(logits.expand(rows, -1), [params] * rows, [generator] * rows)
        counts += tokens.bincount(minlength=len(logits))
    return counts / draws


def test_the_default_is_greedy() -> None:
    params = SamplingParams()
    assert sample(LOGITS[None], [params], [params.generator()]).tolist() == [4]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_draws_from_the_models_distribution(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(-1)
    seen = frequencies(SamplingParams(temperature=temperature, seed=1))
    assert torch.allclose(seen, expected, atol=0.015)
    assert seen[5] == 0


def test_top_k_keeps_the_likeliest_in_proportion() -> None:
    seen = frequencies(SamplingParams(temperature=1.0, top_k=2, seed=1))
    expected = torch.tensor([0, 2.0, 0, 0, 3.0, 0]).where(torch.tensor([0, 1, 0, 0, 1, 0]).bool(), -math.inf).softmax(0)
    assert torch.allclose(seen, expected, atol=0.015)
    assert (seen > 0).sum() == 2


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    probabilities = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
    logits = probabilities.log()
    assert (frequencies(SamplingParams(temperature=1.0, top_p=0.39, seed=1), logits) > 0).tolist() == [
        False,
        True,
        False,
        False,
        False,
    ]
    seen = frequencies(SamplingParams(temperature=1.0, top_p=0.69, seed=1), logits)
    assert torch.allclose(seen, torch.tensor([0, 4 / 7, 0, 3 / 7, 0]), atol=0.015)
    assert (frequencies(SamplingParams(temperature=1.0, top_p=1.0, seed=1), logits) > 0).all()


def test_top_p_counts_after_top_k() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # Of the top 2 the first has 4/7 = 0.57, so that 0.5 is reached by it alone.
    assert frequencies(SamplingParams(temperature=1.0, top_k=2, top_p=0.5, seed=1), logits)[0] == 1


@pytest.mark.parametrize("temperature", [1e-4, 1e4])
def test_extreme_temperatures_give_tokens(temperature: float) -> None:
    seen = frequencies(SamplingParams(temperature=temperature, seed=1), draws=500)
    assert seen.sum() == 1
    assert seen[5] == 0
    if temperature < 1:
        assert seen[4] == 1


params_of_rows = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    top_k=st.none() | st.integers(1, 60),
    top_p=st.none() | st.floats(0.01, 1.0),
    seed=st.integers(0, 2**63 - 1),
)


@given(st.lists(params_of_rows, min_size=1, max_size=5), st.integers(0, 1000))
@settings(max_examples=50, deadline=None)
def test_a_row_does_not_depend_on_its_neighbours(rows: list[SamplingParams], seed: int) -> None:
    logits = torch.randn(len(rows), 50, generator=torch.Generator().manual_seed(seed)) * 3
    together = [row.generator() for row in rows]
    for _ in range(3):
        tokens = sample(logits, rows, together)
    for n, row in enumerate(rows):
        alone = row.generator()
        for _ in range(3):
            token = sample(logits[n : n + 1], [row], [alone])
        assert token.item() == tokens[n]


def test_seeds_repeat_and_no_seed_does_not() -> None:
    logits = torch.zeros(1, 10_000)

    def draws(seed: int | None) -> list[int]:
        params = SamplingParams(temperature=1.0, seed=seed)
        generator = params.generator()
        return [int(sample(logits, [params], [generator])) for _ in range(4)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert draws(None) != draws(None)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    frequencies(SamplingParams(temperature=1.0), draws=500)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0"),
        ({"max_new_tokens": 2.5}, "got 2.5"),
        ({"max_new_tokens": True}, "got True"),
        ({"temperature": -1}, "temperature must be 0 .greedy. or from 0.0001 to 10000, got -1"),
        ({"temperature": math.nan}, "got nan"),
        ({"temperature": "hot"}, "got 'hot'"),
        ({"top_k": 0}, "top_k must be .* got 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, .* got 0.0"),
        ({"top_p": 1.1}, "got 1.1"),
        ({"seed": -1}, "seed must be .* got -1"),
        ({"seed": 2**63}, "seed must be"),
        ({"stop_token_ids": 3}, r"stop_token_ids must be token ids, like \(3, 7\), got 3"),
        ({"stop_token_ids": ["a"]}, "got .'a'."),
    ],
)
def test_impossible_parameters_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplingParams(**wrong)
