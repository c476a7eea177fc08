"""What can't be done is said clearly, and hurts nobody else."""

import math
import random
from typing import Any

import pytest
import torch
from scripted_model import BOS, TOKENIZER, ScriptedModel
from small_models import RUNNERS, check_books, engine_of, finish, needs_native, random_model, random_prompts, run
from transformers.models.nanochat import NanoChatForCausalLM as TheirModel

from nanochat.common import UserError
from nanochat.inference import Engine, SamplingParams


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int3"}, "quantize must be one of fp32, bf16, int8, int4, or None, got 'int3'"),
        ({"quantize": 8}, "got 8"),
        ({"threads": 0}, "threads must be a whole number of at least 1, or None, got 0"),
        ({"threads": -1}, "got -1"),
        ({"threads": "2"}, "got '2'"),
        ({"cache_tokens": 0}, "cache_tokens must be a whole number of at least 1, or None, got 0"),
        ({"cache_tokens": 1.5}, "got 1.5"),
    ],
)
def test_impossible_engines(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Engine(random_model(), TOKENIZER, **options)


@needs_native
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (lambda: random_model(TheirModel), "NanoChatForCausalLM, not nanochat's own"),
        (lambda: random_model(hidden_size=48, num_attention_heads=3, num_key_value_heads=3), "hidden_size is 48"),
        (lambda: random_model(attention_bias=True), "attention biases"),
    ],
)
def test_a_format_that_a_model_can_not_have_is_refused_with_the_reason(model: Any, reason: str) -> None:
    with pytest.raises(UserError, match=f"this model can't be run in int8, because .*{reason}.*leave quantize out"):
        Engine(model(), TOKENIZER, "int8")
    assert len(run(Engine(model(), TOKENIZER), [[BOS]], SamplingParams(3, stop_token_ids=()))[0]) == 3


def test_without_a_compiler_formats_are_refused_and_the_rest_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.model.native.decoder_library", lambda: None)
    with pytest.raises(UserError, match="no C compiler"):
        Engine(random_model(), TOKENIZER, "int8")
    assert "PyTorch float32 on cpu" in Engine(random_model(), TOKENIZER).describe()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefix": [265]}, "the prefix has the token id 265"),
        ({"prefix": ["a"]}, "the prefix must have token ids, but has 'a' in it"),
        ({"prefix": [65] * 95}, "has 96 tokens, but the model's context is 96"),
        ({"params": SamplingParams(logit_bias={265: 1.0})}, "logit_bias has the token id 265"),
        ({"params": {"n": 2}}, "the parameters of the prompt must be SamplingParams, got {'n': 2}"),
        ({"prompt": b"Hi"}, "must be a string, a conversation or a list of token ids, got bytes"),
        ({"prompt": {"role": "user"}}, "got dict"),
        ({"prompt": torch.tensor([1, 2])}, "got Tensor"),
        ({"prompt": [[1], [2]]}, r"has \[1\] in it"),
        ({"prompt": [math.nan]}, "has nan in it"),
        ({"prompt": [10**30]}, "has the token id 1000000"),
    ],
)
def test_a_request_that_can_not_be_is_refused_and_the_others_go_on(arguments: dict[str, Any], message: str) -> None:
    engine = Engine(random_model(), TOKENIZER)
    prompt = random_prompts(1, longest=20)[0]
    other = engine.add(prompt, SamplingParams(10))
    engine.step()
    with pytest.raises(UserError, match=message):
        engine.add(**({"prompt": [BOS]} | arguments))
    finish(engine)
    assert other.results()[0].token_ids == run(Engine(random_model(), TOKENIZER), [prompt], SamplingParams(10))[0]


@pytest.mark.parametrize("params", ["warm", [SamplingParams(), None, 3], 5])
def test_parameters_of_another_kind_are_refused(params: Any) -> None:
    with pytest.raises(UserError, match="SamplingParams"):
        Engine(random_model(), TOKENIZER).generate([[BOS]] * 3, params)


def test_an_answer_that_could_outgrow_the_cache_is_refused_but_shorter_ones_are_not() -> None:
    engine = Engine(random_model(), TOKENIZER, cache_tokens=32)
    with pytest.raises(UserError, match="may take 34 tokens, but the cache holds 32: lower max_new_tokens or raise"):
        engine.generate([[BOS] * 4], SamplingParams(30))
    results = engine.generate([[BOS] * 4] * 5, SamplingParams(28, stop_token_ids=()))
    assert [len(result.token_ids) for result in results] == [28] * 5


def test_more_requests_than_memory_wait_for_their_turn() -> None:
    engine = Engine(random_model(), TOKENIZER, cache_tokens=64)
    requests = [engine.add([BOS, n], SamplingParams(30, n=4)) for n in range(20)]
    assert engine.stats().waiting == 80
    finish(engine)
    expected = run(Engine(random_model(), TOKENIZER), ([BOS, n] for n in range(20)), SamplingParams(30))
    assert [[result.token_ids for result in request.results()] for request in requests] == [[e] * 4 for e in expected]


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_failing_step_ends_its_requests_and_no_others(runner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(0)
    monkeypatch.setattr("nanochat.inference.scheduler.MOST_RUNNING", 3)
    engine = engine_of(runner, cache_tokens=200)
    compute = engine._runner.run

    def unreliable(batch: Any) -> Any:
        if rng.random() < 0.05:
            compute(batch)  # keys and values are written, but nobody hears of it
            raise MemoryError("no memory")
        return compute(batch)

    monkeypatch.setattr(engine._runner, "run", unreliable)
    prompts = random_prompts(25, longest=30, seed=4)
    requests = [engine.add(prompt, SamplingParams(12, n=1 + n % 2)) for n, prompt in enumerate(prompts)]
    emitted = finish(engine)
    expected = run(engine_of(runner), prompts, SamplingParams(12))
    failed = [request for request in requests if request.error]
    assert 0 < len(failed) < 25
    for request, answer in zip(requests, expected):
        for index, result in enumerate(request.results()):
            assert result.token_ids == answer[: len(result.token_ids)]
            assert result.finish_reason == "error" if result.token_ids != answer else request.error or True
            ends = [delta.finish_reason for whose, delta in emitted if whose is request and delta.index == index]
            assert ends == [None] * (len(ends) - 1) + [result.finish_reason]
    check_books(engine)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_damaged_weights_are_an_error_and_repaired_ones_none(runner: str, quantize: str | None) -> None:
    if runner == "torch" and quantize:
        return
    model = random_model()
    engine = engine_of(runner, model, quantize=quantize)
    weight = model.model.layers[0].mlp.fc2.weight
    good = weight.data.clone()
    with torch.no_grad():
        weight[3, 3] = math.nan
    with pytest.raises(RuntimeError, match="the model's logits are not finite: its weights are damaged"):
        engine.generate([[BOS, 1]], SamplingParams(5))
    check_books(engine)
    with torch.no_grad():
        weight.copy_(good)
    fresh = engine_of(runner, random_model(), quantize=quantize)
    assert run(engine, [[BOS, 1]], SamplingParams(5)) == run(fresh, [[BOS, 1]], SamplingParams(5))


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_damaged_token_fails_those_who_have_it_and_no_others(runner: str) -> None:
    model = random_model()
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = math.nan
        model.lm_head.weight[7] = -1  # so that it isn't chosen
    engine = engine_of(runner, model, cache_tokens=96)
    good, bad = [BOS, *range(20, 40)], [BOS, *range(20)]
    expected = run(engine_of(runner, model), [good], SamplingParams(10, logit_bias={7: -100}))
    requests = [engine.add(prompt, SamplingParams(10, logit_bias={7: -100})) for prompt in (good, bad, good)]
    finish(engine)
    assert [request.error is None for request in requests] == [True, False, True]
    for _ in range(3):  # in the pages where the damaged ones were, too
        again = [engine.add(prompt, SamplingParams(10, logit_bias={7: -100})) for prompt in (bad, good)]
        finish(engine)
        assert [request.error is None for request in again] == [False, True]
        assert [result.token_ids for result in again[1].results()] == expected


def test_a_model_made_in_inference_mode_works() -> None:
    with torch.inference_mode():
        engine = Engine(random_model(), TOKENIZER)
        inside = run(engine, [[BOS]], SamplingParams(5))
    assert (
        run(engine, [[BOS]], SamplingParams(5))
        == inside
        == run(Engine(random_model(), TOKENIZER), [[BOS]], SamplingParams(5))
    )


def test_a_stream_that_is_left_frees_its_place() -> None:
    engine = Engine(random_model(), TOKENIZER)
    stream = engine.stream([BOS], SamplingParams(50, stop_token_ids=()))
    next(stream)
    assert engine.stats().running == 1
    del stream
    assert (engine.stats().running, engine.stats().pages_used, engine.has_work) == (0, 0, False)


def test_an_interrupt_frees_every_place() -> None:
    class Interrupted(ScriptedModel):
        def _next(self, ids: list[int]) -> int:
            if len(ids) == 6:
                raise KeyboardInterrupt
            return 65

    engine = Engine(Interrupted({}), TOKENIZER)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([[BOS]] * 3, SamplingParams(50))
    assert not engine.has_work
    check_books(engine)
