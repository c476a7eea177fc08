"""How the next token is chosen: distributions, penalties, bias, seeds."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_model import BOS, TOKENIZER
from small_models import random_model, random_prompts, run
from torch import Tensor
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

from nanochat.inference import Engine, SamplingParams
from nanochat.inference.request import Request, Sample
from nanochat.inference.sampler import choose, distribution
from nanochat.inference.transcript import Vocabulary

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 3.0, -math.inf])
VOCABULARY = Vocabulary(TOKENIZER)
DRAWS = 2_000


def sample_of(params: SamplingParams, prompt: list[int] | None = None, answer: list[int] | None = None) -> Sample:
    [sample, *_] = Request(prompt or [5], params, VOCABULARY, 10**9).samples
    sample.tokens += answer or []
    return sample


def frequencies(params: SamplingParams, logits: Tensor = LOGITS, draws: int = DRAWS, **said: Any) -> Tensor:
    """How often each token is drawn, (V,)."""
    sample = sample_of(params, **said)
    counts = torch.zeros(len(logits))
    for _ in range(draws):
        counts[choose(logits.clone(), sample)] += 1
    return counts / draws


def assert_like(seen: Tensor, expected: Tensor, draws: int = DRAWS) -> None:
    """Chi-square: of 10,000 correct samplers one would fail, but seeds are fixed."""
    possible = expected > 0
    assert not seen[~possible].any()
    statistic = (draws * (seen - expected)[possible] ** 2 / expected[possible]).sum().item()
    degrees = int(possible.sum()) - 1
    assert statistic < degrees + 4 * math.sqrt(2 * degrees) + 8 or degrees == 0 == statistic


def probabilities(params: SamplingParams, logits: Tensor = LOGITS) -> Tensor:
    """What `distribution` gives each token, (V,), adding up to 1."""
    ids, weights = distribution(logits, params)
    assert torch.equal(ids, ids.sort().values)
    return torch.zeros(len(logits)).index_add(0, ids, weights) / weights.sum()


# Distributions


def test_the_default_is_greedy() -> None:
    assert choose(LOGITS.clone(), sample_of(SamplingParams())) == 4


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_temperature_draws_from_the_models_distribution(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(-1)
    params = SamplingParams(temperature=temperature, seed=1)
    assert torch.allclose(probabilities(params), expected)
    assert_like(frequencies(params), expected)


def test_top_k_keeps_the_likeliest_in_proportion() -> None:
    expected = torch.tensor([0, 2.0, 0, 0, 3.0, 0]).where(torch.tensor([0, 1, 0, 0, 1, 0]).bool(), -math.inf).softmax(0)
    assert_like(frequencies(SamplingParams(temperature=1.0, top_k=2, seed=1)), expected)
    assert torch.allclose(probabilities(SamplingParams(temperature=1.0, top_k=99)), LOGITS.softmax(0))


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15]).log()
    for top_p, kept in [(0.01, [1]), (0.39, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.71, [1, 3, 4]), (1.0, range(5))]:
        params = SamplingParams(temperature=1.0, top_p=top_p)
        assert probabilities(params, logits).nonzero()[:, 0].tolist() == sorted(kept)
    params = SamplingParams(temperature=1.0, top_p=0.69, seed=1)
    assert_like(frequencies(params, logits), torch.tensor([0, 4 / 7, 0, 3 / 7, 0]))


def test_top_p_counts_after_temperature_and_top_k() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # Of the top 2 the first has 4/7 = 0.57, so that 0.5 is reached by it alone.
    assert frequencies(SamplingParams(temperature=1.0, top_k=2, top_p=0.5, seed=1), logits, draws=200)[0] == 1
    # Flat: each of four has about a quarter, and 0.7 needs three.
    assert (probabilities(SamplingParams(temperature=1e4, top_p=0.7), logits) > 0).sum() == 3


def test_min_p_keeps_what_is_not_much_less_likely_than_the_likeliest() -> None:
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    expected = torch.tensor([0.4, 0.3, 0.2, 0]) / 0.9
    assert_like(frequencies(SamplingParams(temperature=1.0, min_p=0.3, seed=1), logits), expected)
    assert probabilities(SamplingParams(temperature=1.0, min_p=1.0), logits)[0] == 1
    assert (probabilities(SamplingParams(temperature=1.0, min_p=0.0), logits) > 0).all()


def test_limits_that_keep_all_draw_as_no_limits() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))

    def draws(**limits: Any) -> list[int]:
        sample = sample_of(SamplingParams(temperature=1.0, seed=1, **limits))
        return [choose(logits.clone(), sample) for _ in range(30)]

    assert draws() == draws(top_k=50) == draws(top_k=10**9) == draws(top_p=1.0) == draws(min_p=0.0)


@given(
    st.integers(0, 10**6),
    st.sampled_from([10, 100, 3000]),
    st.floats(0.2, 3.0),
    st.none() | st.integers(1, 200),
    st.none() | st.floats(0.05, 0.999),
    st.none() | st.floats(0.001, 0.5),
)
@settings(max_examples=80, deadline=None)
def test_the_distribution_is_that_of_transformers_warpers(
    seed: int, size: int, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None
) -> None:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 4
    expected = logits[None].double() / temperature
    if top_k is not None:
        expected = expected.masked_fill(expected < expected.topk(min(top_k, size)).values[:, -1:], -math.inf)
    if top_p is not None:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p is not None:
        expected = MinPLogitsWarper(min_p)(None, expected)
    seen = probabilities(SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p), logits)
    off = (seen - expected[0].softmax(-1)).abs().max().item()
    # At the very border of a limit fp32 and fp64 may disagree about one token: its share is what they differ by.
    borderline = seen[seen > 0].min().item()
    assert off < 1e-5 + 2 * borderline * ((seen > 0).sum() != (expected > -math.inf).sum()).item()


@pytest.mark.parametrize("temperature", [1e-4, 1e4])
def test_extreme_temperatures_give_tokens(temperature: float) -> None:
    seen = frequencies(SamplingParams(temperature=temperature, seed=1), draws=500)
    assert seen[5] == 0
    if temperature < 1:
        assert seen[4] == 1
    assert frequencies(SamplingParams(temperature=1e-4, seed=1), LOGITS * 1e4, draws=5)[4] == 1


def test_a_token_without_a_chance_is_never_drawn_at_the_ends() -> None:
    logits = torch.full((1000,), -math.inf)
    logits[500] = 0
    assert frequencies(SamplingParams(temperature=1.0, seed=1), logits, draws=200)[500] == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_an_error(bad: float, temperature: float) -> None:
    for at in (0, 3):
        logits = torch.zeros(8)
        logits[at] = bad
        with pytest.raises(FloatingPointError, match="not finite"):
            choose(logits, sample_of(SamplingParams(temperature=temperature)))
    with pytest.raises(FloatingPointError, match="not finite"):
        choose(torch.full((8,), -math.inf), sample_of(SamplingParams(temperature=temperature)))


# Penalties and bias: compared by what a temperature of 1 makes of a row


def adjusted(params: dict[str, Any], logits: Tensor, prompt: list[int], answer: list[int]) -> Tensor:
    row = logits.clone()
    choose(row, sample_of(SamplingParams(**params), prompt, answer))
    return row


@given(st.integers(0, 10**6), st.floats(0.5, 2.0), st.lists(st.integers(0, 29), min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_repetition_penalty_is_transformers(seed: int, penalty: float, tokens: list[int]) -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(seed))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([tokens]), logits[None].clone())[0]
    half = len(tokens) // 2
    seen = adjusted({"repetition_penalty": penalty}, logits, tokens[: half or 1], tokens[half or 1 :])
    assert torch.allclose(seen, expected)


@given(st.floats(-2, 2), st.floats(-2, 2), st.lists(st.integers(0, 9), max_size=20))
@settings(max_examples=30, deadline=None)
def test_presence_and_frequency_penalty_are_openais(presence: float, frequency: float, answer: list[int]) -> None:
    """mu[j] -= c[j] * frequency + (c[j] > 0) * presence, with c counted in the answer only."""
    logits = torch.randn(10, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([answer.count(token) for token in range(10)])
    expected = logits - counts * frequency - (counts > 0) * presence
    params = {"presence_penalty": presence, "frequency_penalty": frequency}
    assert torch.allclose(adjusted(params, logits, [1, 2, 3, 3], answer), expected, atol=1e-6)


def test_bias_is_added_and_forbidden_stays_forbidden() -> None:
    logits = torch.tensor([1.0, 2.0, 3.0, -math.inf])
    seen = adjusted({"logit_bias": {0: 5.5, 2: -100, 3: 100}}, logits, [0], [])
    assert seen.tolist() == [6.5, 2.0, -97.0, -math.inf]
    assert choose(logits.clone(), sample_of(SamplingParams(logit_bias={0: 5.5}))) == 0
    expected = torch.tensor([1.0, 2.0, 1.0, -math.inf]).softmax(-1)
    assert_like(frequencies(SamplingParams(temperature=1.0, logit_bias={2: -2.0}, seed=3), logits), expected)


def test_penalties_and_bias_in_the_engine() -> None:
    engine = Engine(random_model(), TOKENIZER)
    [prompt] = random_prompts(1, longest=30, seed=7)
    plain = run(engine, [prompt], SamplingParams(30))[0]
    assert len(set(plain)) < len(plain)  # it repeats itself
    for params in ({"presence_penalty": 2.0, "frequency_penalty": 2.0}, {"repetition_penalty": 100.0}):
        tokens = run(engine, [prompt], SamplingParams(30, stop_token_ids=(), **params))[0]  # type: ignore[arg-type]
        assert len(set(tokens)) > len(set(plain))
    assert run(engine, [prompt], SamplingParams(3, logit_bias={65: 100})) == [[65] * 3]
    without = run(engine, [prompt], SamplingParams(1, logit_bias={plain[0]: -100}))[0]
    assert without != plain[:1]


# Seeds


params_of_rows = st.builds(
    SamplingParams,
    max_new_tokens=st.just(6),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 3.0]),
    top_k=st.none() | st.integers(1, 60),
    top_p=st.none() | st.floats(0.01, 1.0),
    min_p=st.none() | st.floats(0.0, 0.2),
    presence_penalty=st.sampled_from([0.0, 1.5]),
    seed=st.integers(0, 2**63 - 1),
    n=st.integers(1, 3),
)
ENGINES = [Engine(random_model(), TOKENIZER, cache_tokens=tokens) for tokens in (320, 2000)]


@given(st.lists(st.tuples(params_of_rows, st.integers(0, 20)), min_size=2, max_size=5), st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_a_seeds_answer_does_not_depend_on_the_batch(rows: list[tuple[SamplingParams, int]], seed: int) -> None:
    params = [its for its, _ in rows]
    prompts = [[BOS, *range(length)] for _, length in rows]
    together = [result.token_ids for result in ENGINES[1].generate(prompts, params)]
    alone = [result.token_ids for prompt, its in zip(prompts, params) for result in ENGINES[0].generate([prompt], its)]
    assert together == alone


def test_samples_differ_and_the_first_is_that_of_one() -> None:
    engine = Engine(random_model(), TOKENIZER)
    [prompt] = random_prompts(1, longest=30, seed=8)
    params: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "seed": 5, "stop_token_ids": ()}
    many = run(engine, [prompt], SamplingParams(n=20, **params))
    assert len(set(map(tuple, many))) == 20
    assert many[:1] == run(engine, [prompt], SamplingParams(**params))
    assert many[:7] == run(engine, [prompt], SamplingParams(n=7, **params))
    following = run(engine, [prompt], SamplingParams(n=20, **params | {"seed": 6}))
    assert not set(map(tuple, many)) & set(map(tuple, following))


def test_seeds_repeat_and_no_seed_does_not() -> None:
    def draws(seed: int | None) -> list[int]:
        sample = sample_of(SamplingParams(temperature=1.0, seed=seed))
        return [choose(torch.zeros(10_000), sample) for _ in range(4)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert draws(0) != draws(2**63 - 1)
    assert draws(None) != draws(None)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    frequencies(SamplingParams(temperature=1.0), draws=50)
    run(Engine(random_model(), TOKENIZER), [[BOS]], SamplingParams(5, temperature=1.0))
    torch.random.set_rng_state(before)
    engine = Engine(random_model(), TOKENIZER)
    before = torch.random.get_rng_state()
    run(engine, [[BOS]], SamplingParams(5, temperature=1.0))
    assert torch.equal(before, torch.random.get_rng_state())
