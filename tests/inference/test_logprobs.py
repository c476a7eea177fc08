"""Probabilities that are told: the model's own, whatever the tokens were chosen by."""

from typing import Any

import pytest
import torch
from scripted_model import BOS, CONTROL, TOKENIZER
from small_models import RUNNERS, engine_of, random_model, random_prompts
from torch import Tensor

from nanochat.common import UserError
from nanochat.inference import Engine, SamplingParams


@torch.no_grad()
def own_logprobs(model: Any, tokens: list[int]) -> Tensor:
    """(T, V): by the model in one go, after each token."""
    return model(torch.tensor([tokens])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"temperature": 1.5, "top_k": 20, "seed": 1},
        {"repetition_penalty": 2.0, "logit_bias": {65: 5.0}, "temperature": 0.3, "seed": 2},
    ],
)
def test_logprobs_are_the_models_own(runner: str, choice: dict[str, Any]) -> None:
    model = random_model()
    prompts = [*random_prompts(5, longest=30, seed=1), [BOS, *[7, 8, 9] * 8]]  # the last one brings drafts
    params = SamplingParams(20, logprobs=4, stop_token_ids=(), **choice)
    for prompt, result in zip(prompts, engine_of(runner, model).generate(prompts, params)):
        expected = own_logprobs(model, [*prompt, *result.token_ids])[len(prompt) - 1 : -1]
        for token, row in zip(result.tokens, expected):
            assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-4)
            likeliest = row.topk(4)
            assert [id for id, _ in token.top] == likeliest.indices.tolist()
            assert [value for _, value in token.top] == pytest.approx(likeliest.values.tolist(), abs=1e-4)
        assert result.logprobs == [token.logprob for token in result.tokens]


def test_the_likeliest_may_be_a_token_that_is_never_chosen() -> None:
    model = random_model()
    model.lm_head.weight.data[CONTROL[0]] = 0
    engine = Engine(model, TOKENIZER)
    tops = [token.top for token in engine.generate([[BOS]], SamplingParams(5, logprobs=20))[0].tokens]
    everything = own_logprobs(model, [BOS])[0]
    assert [id for id, _ in tops[0]] == everything.topk(20).indices.tolist()


@pytest.mark.parametrize(("asked", "told"), [(None, None), (0, 0), (1, 1), (20, 20)])
def test_as_many_are_told_as_asked_for(asked: int | None, told: int | None) -> None:
    engine = Engine(random_model(), TOKENIZER)
    for token in engine.generate([[BOS]], SamplingParams(3, logprobs=asked))[0].tokens:
        assert (token.logprob is None) == (told is None)
        assert len(token.top) == (told or 0)


def test_asking_changes_no_token() -> None:
    engine = Engine(random_model(), TOKENIZER)
    for params in ({}, {"temperature": 1.0, "seed": 3}, {"repetition_penalty": 1.5}):
        plain, told = (
            engine.generate(
                [[BOS, 5]] * 2, [SamplingParams(15, logprobs=asked, **params), SamplingParams(15, **params)]
            )
            for asked in (None, 3)
        )
        assert [result.token_ids for result in plain] == [result.token_ids for result in told]


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("length", [2, 16, 17, 95, 96])
def test_a_texts_logprobs(runner: str, length: int) -> None:
    model = random_model()
    engine = engine_of(runner, model)
    engine._scheduler.chunk = 30
    tokens = [BOS, *random_prompts(1, longest=2, seed=2)[0] * 60][:length]
    seen = engine.logprobs(tokens)
    expected = own_logprobs(model, tokens)[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    torch.testing.assert_close(seen, expected, atol=1e-4, rtol=0)
    assert engine.stats().pages_used == 0


def test_a_texts_logprobs_need_two_tokens_in_the_context_and_room() -> None:
    engine = Engine(random_model(), TOKENIZER, cache_tokens=32)
    for wrong in ([], [BOS], [BOS] * 97):
        with pytest.raises(UserError, match=f"logprobs needs from 2 to 96 token ids, got {len(wrong)}"):
            engine.logprobs(wrong)
    with pytest.raises(UserError, match="no room for 40 tokens"):
        engine.logprobs([BOS] * 40)
    with pytest.raises(UserError, match="token id 265"):
        engine.logprobs([BOS, 265])
    assert engine.stats().pages_used == 0


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_model_that_has_learnt_is_asked_as_it_is_now(runner: str) -> None:
    model = random_model()
    engine = engine_of(runner, model)
    prompt = random_prompts(1, longest=40, seed=3)[0]
    before = engine.generate([prompt], SamplingParams(10, logprobs=0))[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05)
    fresh = engine_of(runner, model)
    assert torch.equal(engine.logprobs(prompt), fresh.logprobs(prompt))
    after = engine.generate([prompt], SamplingParams(10, logprobs=0))[0]
    assert after.logprobs == fresh.generate([prompt], SamplingParams(10, logprobs=0))[0].logprobs != before.logprobs
