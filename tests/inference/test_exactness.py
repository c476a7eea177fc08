"""Whatever else runs, comes, goes and is in the cache: greedy tokens are those of Transformers' own model."""

import functools
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_model import BOS, TOKENIZER
from small_models import (
    RUNNERS,
    check_books,
    engine_of,
    finish,
    needs_native,
    random_model,
    random_prompts,
    run,
    their_answers,
    tokens_of,
    up_to_stop,
)
from transformers.models.nanochat import NanoChatForCausalLM as TheirModel

from nanochat.inference import Engine, Request, SamplingParams, join_deltas, scheduler

NEW = 24
LENGTHS = (1, 2, 9, 15, 16, 17, 32, 33, 48, 63)


def related_prompts(count: int, seed: int) -> list[list[int]]:
    """Prompts of 1 to 63 tokens: many begin alike, some repeat themselves, some are equal."""
    rng = random.Random(seed)
    stems = [[BOS, *rng.choices(range(256), k=length)] for length in (15, 16, 17, 31, 40)]
    prompts = []
    for _ in range(count):
        stem = rng.choice([[BOS], *stems])
        phrase = rng.choices(range(256), k=rng.randrange(1, 6))
        end = rng.choice([[], phrase, phrase * 4, rng.choices(range(256), k=rng.randrange(30))])
        longest = max(length for length in LENGTHS if length <= len(stem) + len(end))
        prompts.append([*stem, *end][:longest])
    return prompts


@functools.cache
def hundreds() -> dict[tuple[int, ...], list[int]]:
    """Prompts, and what Transformers answers."""
    prompts = related_prompts(500, seed=1)
    return dict(zip(map(tuple, prompts), their_answers(prompts, NEW)))


@pytest.mark.parametrize("runner", RUNNERS)
def test_hundreds_of_prompts_at_once(runner: str) -> None:
    assert len(hundreds()) > 200
    assert run(engine_of(runner), map(list, hundreds()), SamplingParams(NEW)) == list(hundreds().values())


@pytest.mark.parametrize("sizes", [{"num_key_value_heads": 4}, {"num_key_value_heads": 1}, {"vocab_size": 271}])
def test_other_heads_and_vocabularies(sizes: dict[str, Any]) -> None:
    model = random_model(**sizes)
    prompts = related_prompts(20, seed=2)
    expected = their_answers(prompts, NEW, **sizes)
    engine = Engine(model, TOKENIZER)
    assert all(max(answer) < len(TOKENIZER) for answer in run(engine, prompts, SamplingParams(NEW)))
    if model.config.vocab_size == 265:  # Transformers would also choose rows that stand for no text
        assert run(engine, prompts, SamplingParams(NEW)) == expected


def test_transformers_own_model_in_the_engine() -> None:
    engine = Engine(random_model(TheirModel), TOKENIZER)
    assert "PyTorch" in engine.describe()
    prompts = list(hundreds())[:50]
    assert run(engine, map(list, prompts), SamplingParams(NEW)) == [hundreds()[prompt] for prompt in prompts]


@pytest.mark.parametrize(
    ("runner", "seed"),
    [*(pytest.param("native", seed, marks=needs_native) for seed in range(8)), *(("torch", seed) for seed in (0, 1))],
)
def test_requests_that_come_and_go_in_a_cache_that_is_too_small(
    runner: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(scheduler, "MOST_RUNNING", rng.choice([2, 5, 64]))
    engine = engine_of(runner, cache_tokens=rng.choice([96, 160, 320, 640]))
    engine._scheduler.chunk = rng.choice([1, 7, 16, 33, 256])
    prompts = [list(prompt) for prompt in rng.choices(list(hundreds()), k=40)]
    requests: list[Request] = []
    cancelled: set[Request] = set()
    emitted: dict[Request, list[Any]] = {}
    while prompts or engine.has_work:
        for _ in range(rng.choice([0, 0, 1, 3])):
            if prompts:
                params = SamplingParams(rng.randint(1, NEW), n=rng.choice([1, 1, 1, 3]))
                requests.append(engine.add(prompts.pop(), params))
        for request, delta in engine.step():
            emitted.setdefault(request, []).append(delta)
        if requests and rng.random() < 0.1:
            request = rng.choice(requests)
            for _, delta in engine.cancel(request):
                emitted.setdefault(request, []).append(delta)
                cancelled.add(request)
        check_books(engine)
    for request in requests:
        greedy = hundreds()[tuple(request.prompt_ids)][: request.params.max_new_tokens]
        for result, index in zip(request.results(), range(request.params.n)):
            if result.finish_reason == "cancelled":
                assert request in cancelled
                assert result.token_ids == greedy[: len(result.token_ids)]
            else:
                assert result.token_ids == greedy
            deltas = [delta for delta in emitted[request] if delta.index == index]
            assert tokens_of(deltas) == result.tokens
            assert [token.id for token in result.tokens] == result.token_ids
            assert join_deltas(deltas) == result.parts
            assert [delta.finish_reason for delta in deltas] == [None] * (len(deltas) - 1) + [result.finish_reason]


@pytest.mark.parametrize("runner", RUNNERS)
def test_answers_that_outgrow_the_cache_are_set_back_and_end_as_they_would(runner: str) -> None:
    prompts = random_prompts(6, longest=8, seed=4)
    engine = engine_of(runner, cache_tokens=96)
    requests = [engine.add(prompt, SamplingParams(70, stop_token_ids=())) for prompt in prompts]
    most = set_back = 0
    while engine.has_work:
        running = set(engine._scheduler.running)
        engine.step()
        check_books(engine)
        most = max(most, len(running))
        set_back += len(running & set(engine._scheduler.waiting))
    assert most > 1
    assert set_back > 1
    alone = run(engine_of(runner), prompts, SamplingParams(70, stop_token_ids=()))
    assert [request.results()[0].token_ids for request in requests] == alone


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_second_turn_takes_the_first_from_the_cache(runner: str) -> None:
    engine = engine_of(runner)
    first = random_prompts(1, longest=2, seed=5)[0] * 18
    [answer] = engine.generate([first], SamplingParams(20, stop_token_ids=()))
    assert answer.cached_tokens == 0
    second = [*first, *answer.token_ids, *b"So?"]
    [again] = engine.generate([second], SamplingParams(NEW))
    assert len(first) + 20 - 16 <= again.cached_tokens < len(second)
    assert again.cached_tokens % 16 == 0
    assert again.token_ids == their_answers([second], NEW)[0]
    assert engine.stats().cached_tokens == again.cached_tokens
    assert engine.stats().prompt_tokens == len(first) + len(second) - again.cached_tokens


@pytest.mark.parametrize("length", [15, 16, 17, 31, 32, 33])
def test_a_repeated_prompt_is_known_but_for_its_last_token(length: int) -> None:
    engine = Engine(random_model(), TOKENIZER)
    prompt = [BOS] * length
    first, again = (engine.generate([prompt], SamplingParams(5))[0] for _ in range(2))
    assert again.token_ids == first.token_ids
    assert again.cached_tokens == (length - 1) // 16 * 16


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.05}, {"temperature": 0.7, "top_k": 4, "n": 2}])
def test_drafts_change_nothing_but_the_number_of_steps(
    runner: str, sampling: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[BOS, *(prompt[1:] * 8)[:40]] for prompt in random_prompts(4, longest=9, seed=6)]
    params = [SamplingParams(50, seed=n, stop_token_ids=(), **sampling) for n in range(len(prompts))]
    drafting, plain = engine_of(runner), engine_of(runner)

    def answers(engine: Engine) -> tuple[list[list[int]], int]:
        steps, tokens = 0, []
        for prompt, its in zip(prompts, params):
            request = engine.add(prompt, its)
            while engine.has_work:
                engine.step()
                check_books(engine)
                steps += 1
            tokens += [result.token_ids for result in request.results()]
        return tokens, steps

    with_drafts, fewer = answers(drafting)
    monkeypatch.setattr(scheduler, "MOST_DRAFTING", 0)
    without, steps = answers(plain)
    assert with_drafts == without
    # At temperature 0.7 nothing such a model says can be guessed.
    assert fewer < steps or (sampling.get("temperature") == 0.7 and fewer == steps)


@given(st.integers(0, 10**6), st.lists(st.integers(1, 60), min_size=1, max_size=5), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_chunks_and_arrivals_change_no_bit(seed: int, lengths: list[int], chunk: int) -> None:
    """The native decoder's log-probabilities are compared, not only tokens."""
    rng = random.Random(seed)
    prompts = [[BOS, *rng.choices(range(256), k=length - 1)] for length in lengths]
    params = SamplingParams(6, temperature=1.0, seed=seed, logprobs=2)
    alone = [FRESH.generate([prompt], params)[0].tokens for prompt in prompts]
    MIXED._scheduler.chunk = chunk
    requests = []
    for prompt in prompts:
        requests.append(MIXED.add(prompt, params))
        for _ in range(rng.randrange(3)):
            MIXED.step()
            check_books(MIXED)
    finish(MIXED)
    assert [request.results()[0].tokens for request in requests] == alone


FRESH, MIXED = (Engine(random_model(), TOKENIZER, cache_tokens=tokens) for tokens in (96, 480))


def test_the_end_of_the_context_is_the_end_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[BOS] * length for length in (95, 94, 90, 80, 79)]
    results = engine_of("torch").generate(prompts, SamplingParams(1000, stop_token_ids=()))
    assert [len(result.token_ids) + len(prompt) for prompt, result in zip(prompts, results)] == [96] * 5
    natively = Engine(random_model(), TOKENIZER).generate(prompts, SamplingParams(1000, stop_token_ids=()))
    assert [result.token_ids for result in natively] == [result.token_ids for result in results]
    for prompt, result in zip(prompts, results):
        expected = their_answers([prompt], 96 - len(prompt))[0]
        assert up_to_stop(result.token_ids) == expected
