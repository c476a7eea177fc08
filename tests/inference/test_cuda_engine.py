"""The engine on the CUDA decoder: it starts a step before it has seen the tokens of the last one, and nobody notices.

Without a GPU the kernels run in Triton's interpreter.
"""

from typing import Any

import pytest
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton")

from scripted_model import BOS, END, PYTHON, PYTHON_END, TOKENIZER, ids
from small_models import check_books, finish, random_model, random_prompts, run, their_answers

from nanochat.inference import Engine, SamplingParams
from nanochat.inference.cache import KVCache
from nanochat.inference.runner import CudaRunner
from nanochat.inference.scheduler import Scheduler

NEW = 8


def cuda_engine(model: Any = None, **options: Any) -> Engine:
    engine = Engine((model or random_model(num_hidden_layers=1)).to(DEVICE), TOKENIZER, **options)
    if DEVICE == "cpu":
        engine._runner = CudaRunner(engine.model, "fp32", engine._cache.pages, engine._forbidden)
        engine._cache = KVCache(engine._runner.pages)
        engine._scheduler = Scheduler(engine._cache, 256, drafts=False)
    assert isinstance(engine._runner, CudaRunner)
    return engine


ENGINE = cuda_engine(cache_tokens=640)


def test_greedy_tokens_are_those_of_transformers() -> None:
    prompts = random_prompts(5, longest=30)
    assert run(ENGINE, prompts, SamplingParams(NEW)) == their_answers(prompts, NEW, num_hidden_layers=1)


def test_seeds_draw_as_on_the_cpu() -> None:
    prompts = random_prompts(3, longest=20, seed=1)
    params = SamplingParams(NEW, temperature=0.9, top_k=20, top_p=0.9, seed=7, n=2)
    on_cpu = Engine(random_model(num_hidden_layers=1), TOKENIZER)
    assert run(ENGINE, prompts, params) == run(on_cpu, prompts, params)


def test_requests_that_need_logits_and_those_that_do_not_share_steps() -> None:
    prompts = random_prompts(4, longest=20, seed=2)
    each = [
        SamplingParams(NEW),
        SamplingParams(NEW, logprobs=2),
        SamplingParams(3, repetition_penalty=1.3, temperature=1.0, seed=3),
        SamplingParams(2 * NEW),
    ]
    on_cpu = Engine(random_model(num_hidden_layers=1), TOKENIZER)
    for seen, expected in zip(ENGINE.generate(prompts, each), on_cpu.generate(prompts, each)):
        assert seen.token_ids == expected.token_ids
        assert seen.finish_reason == expected.finish_reason
        for one, other in zip(seen.tokens, expected.tokens):
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_requests_come_and_go_and_are_set_back() -> None:
    prompts = random_prompts(5, longest=30, seed=3)
    engine = cuda_engine(cache_tokens=96)
    requests = [engine.add(prompt, SamplingParams(12, stop_token_ids=())) for prompt in prompts]
    cancelled = engine.add(prompts[0], SamplingParams(12))
    for _ in range(6):
        engine.step()
        check_books(engine)
    engine.cancel(cancelled)
    finish(engine)
    alone = Engine(random_model(num_hidden_layers=1), TOKENIZER)
    expected = run(alone, prompts, SamplingParams(12, stop_token_ids=()))
    assert [request.results()[0].token_ids for request in requests] == expected


class Told(CudaRunner):
    """A runner that computes, but whose tokens are those of scripts, by prompt and place."""

    scripts: dict[tuple[int, ...], list[int]]

    def launch(self, batch: Any) -> Any:
        flight = super().launch(batch)
        flight.tokens()  # they are here
        for sample, place in zip(batch.choosing, flight.places):
            script = self.scripts[tuple(sample.request.prompt_ids)]
            said = sample.answer_length + sample.ahead
            flight.chosen[place] = script[said] if said < len(script) else END
        return flight


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_results_of_calls_are_forced_and_what_was_chosen_meanwhile_is_dropped(temperature: float) -> None:
    engine = cuda_engine(cache_tokens=320)
    engine._runner.__class__ = Told
    call = [PYTHON, *ids("37*24"), PYTHON_END]
    forced = len(ids("888")) + 2
    engine._runner.scripts = {
        (BOS, 1): [*call, *[0] * forced, *ids("yes"), END],
        (BOS, 2): [*ids("no calls here"), END],
    }
    params = SamplingParams(40, temperature=temperature, seed=1)
    requests = [engine.add(list(prompt), params) for prompt in engine._runner.scripts]
    finish(engine)
    first, second = (request.results()[0] for request in requests)
    assert [part["text"] for part in first.parts] == ["37*24", "888", "yes"]
    assert second.text == "no calls here"
    assert first.finish_reason == second.finish_reason == "stop"


def test_a_step_that_fails_ends_its_requests_only(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = random_prompts(2, longest=9, seed=5)
    request = ENGINE.add(prompts[0], SamplingParams(NEW))
    ENGINE.step()
    with monkeypatch.context() as patch:
        patch.setattr(ENGINE._runner, "launch", lambda batch: 1 / 0)
        ENGINE.step()
    assert request.results()[0].finish_reason == "error"
    finish(ENGINE)
    assert run(ENGINE, prompts, SamplingParams(NEW)) == their_answers(prompts, NEW, num_hidden_layers=1)


def test_logits_that_are_not_finite_end_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(num_hidden_layers=1)
    model.lm_head.weight.data[65] = torch.nan
    engine = cuda_engine(model, cache_tokens=96)
    request = engine.add([BOS, 1], SamplingParams(NEW))
    finish(engine)
    assert request.results()[0].finish_reason == "error"
    assert "not finite" in request.error


def test_log_probabilities_of_a_text_disturb_no_answer() -> None:
    prompt, text = random_prompts(2, longest=40, seed=4)
    expected = Engine(random_model(num_hidden_layers=1), TOKENIZER).logprobs(text)
    request = ENGINE.add(prompt, SamplingParams(NEW, stop_token_ids=()))
    for _ in range(3):
        ENGINE.step()
        assert torch.allclose(ENGINE.logprobs(text), expected, atol=1e-4)
        check_books(ENGINE)
    finish(ENGINE)
    assert request.results()[0].token_ids == run(ENGINE, [prompt], SamplingParams(NEW, stop_token_ids=()))[0]
    [theirs] = their_answers([prompt], NEW, num_hidden_layers=1)
    assert request.results()[0].token_ids[: len(theirs)] == theirs
