"""The engine for asyncio: every task gets its own answer, whatever the others do and whatever breaks."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from scripted_model import BOS, CALL, END, FORGED, TOKENIZER, ScriptedModel, ids
from small_models import check_books, random_model, random_prompts, run, tokens_of

from nanochat.common import UserError
from nanochat.inference import (
    AsyncEngine,
    AsyncRequest,
    Delta,
    Engine,
    QueueFullError,
    SamplingParams,
    join_deltas,
    scheduler,
)

ENDLESS = SamplingParams(90, stop_token_ids=())


def within(seconds: float, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), seconds)

    asyncio.run(bounded())


async def all_of(request: AsyncRequest) -> list[Delta]:
    return [delta async for delta in request]


def ids_of(deltas: list[Delta], index: int = 0) -> list[int]:
    return [token.id for token in tokens_of(delta for delta in deltas if delta.index == index)]


def test_tasks_get_their_own_answers_at_once() -> None:
    prompts = random_prompts(30, longest=40, seed=1)
    params = [SamplingParams(10, temperature=1.0, seed=n, n=1 + n % 2) for n in range(30)]
    alone = Engine(random_model(), TOKENIZER).generate(prompts, params)

    async def main() -> None:
        async with AsyncEngine(Engine(random_model(), TOKENIZER)) as running:
            requests = [running.submit(prompt, its) for prompt, its in zip(prompts, params)]
            answers = await asyncio.gather(*map(all_of, requests))
        results = iter(alone)
        for request, deltas in zip(requests, answers):
            assert request.request.finished
            for index in range(request.request.params.n):
                result = next(results)
                assert ids_of(deltas, index) == result.token_ids
                assert join_deltas(d for d in deltas if d.index == index) == result.parts

    within(60, main)


def test_it_answers_one_after_the_other_for_long() -> None:
    async def main() -> None:
        async with AsyncEngine(Engine(random_model(), TOKENIZER)) as running:
            for n in range(20):
                deltas = await all_of(running.submit([BOS, n], SamplingParams(3, stop_token_ids=())))
                assert len(ids_of(deltas)) == 3
                await asyncio.sleep(0.001 * (n % 3))  # so that it goes to sleep in between, or not quite
            assert running.engine.stats().running == 0

    within(60, main)


def test_a_cancelled_request_gives_its_place_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "MOST_RUNNING", 1)

    async def main() -> None:
        async with AsyncEngine(
            Engine(ScriptedModel({(BOS,): [65] * 10**6}, context_length=10**6), TOKENIZER)
        ) as running:
            first = running.submit([BOS], SamplingParams(10**5))
            second = running.submit([BOS], SamplingParams(3))
            pieces = aiter(first)
            assert (await anext(pieces)).text == "A"
            first.cancel()
            assert len(ids_of(await all_of(second))) == 3
            rest = [delta async for delta in pieces]
            assert [delta.finish_reason for delta in rest] == [None] * (len(rest) - 1) + ["cancelled"]
            assert len(rest) < 1000
            first.cancel()  # once more does nothing
            second.cancel()
            assert running.engine.stats().running == 0
            assert running.engine.stats().pages_used == 0

    within(60, main)


def test_a_request_cancelled_before_it_began_ends_too() -> None:
    async def main() -> None:
        async with AsyncEngine(Engine(random_model(), TOKENIZER)) as running:
            request = running.submit([BOS], SamplingParams(n=3), prefix=[65, 66])
            request.cancel()
            deltas = await all_of(request)
            assert [delta.index for delta in deltas if delta.finish_reason == "cancelled"] == [0, 1, 2]
            for index in range(3):  # the given beginning comes, where it came at all, before the end
                assert ids_of(deltas, index) == [65, 66]
            assert ids_of(await all_of(running.submit([BOS], SamplingParams(3)))) != []

    within(60, main)


def test_a_beginning_that_is_the_whole_answer_ends_it() -> None:
    async def main() -> None:
        async with AsyncEngine(Engine(random_model(), TOKENIZER)) as running:
            deltas = await all_of(running.submit([BOS], SamplingParams(n=2, stop="B"), prefix=ids("AB")))
            assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["stop", "stop"]

    within(60, main)


def test_too_many_that_wait_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "MOST_RUNNING", 1)

    async def main() -> None:
        async with AsyncEngine(Engine(random_model(), TOKENIZER), max_waiting=2) as running:
            accepted = []
            with pytest.raises(QueueFullError, match="2 requests are waiting already"):
                for _ in range(100):
                    accepted.append(running.submit([BOS], ENDLESS))
            assert len(accepted) >= 2
            for request in accepted:
                assert len(ids_of(await all_of(request))) == 90
            assert len(ids_of(await all_of(running.submit([BOS], SamplingParams(2, stop_token_ids=()))))) == 2

    within(60, main)


def test_a_bad_prompt_is_refused_at_once_and_hurts_nobody() -> None:
    async def main() -> None:
        async with AsyncEngine(Engine(random_model(), TOKENIZER)) as running:
            good = running.submit([BOS], ENDLESS)
            for wrong in ("", [], [BOS] * 96, [265], [{"role": "nobody", "content": "a"}], 3):
                with pytest.raises(UserError):
                    running.submit(wrong)  # type: ignore[arg-type]
            with pytest.raises(UserError):
                running.submit([BOS], prefix=[-1])
            assert len(ids_of(await all_of(good))) == 90
            assert running._coming == 0

    within(60, main)


@pytest.mark.parametrize("error", [MemoryError("no memory"), RuntimeError("broken")])
def test_an_error_ends_what_was_computed_and_the_next_is_answered(error: Exception) -> None:
    async def main() -> None:
        engine = Engine(random_model(), TOKENIZER)
        compute, calls = engine._runner.run, 0

        def breaks(batch: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 5:
                raise error
            return compute(batch)

        engine._runner.run = breaks  # type: ignore[method-assign]
        async with AsyncEngine(engine) as running:
            requests = [running.submit([BOS, n], SamplingParams(50, n=2, stop_token_ids=())) for n in range(3)]
            answers = await asyncio.gather(*map(all_of, requests))
            for request, deltas in zip(requests, answers):
                ends = [delta.finish_reason for delta in deltas if delta.finish_reason]
                assert len(ends) == 2
                assert set(ends) <= {"error", "length"}
                assert ("error" in ends) == (request.request.error is not None)
            assert f"{type(error).__name__}: {error}" in [request.request.error for request in requests]
            assert len(ids_of(await all_of(running.submit([BOS], ENDLESS)))) == 90
        check_books(engine)

    within(60, main)


def test_even_a_bug_of_the_engine_leaves_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        engine = Engine(random_model(), TOKENIZER)
        schedule = engine._scheduler.schedule

        def broken() -> Any:
            engine._scheduler.schedule = schedule  # type: ignore[method-assign]
            raise KeyError("a bug")

        engine._scheduler.schedule = broken  # type: ignore[method-assign]
        async with AsyncEngine(engine) as running:
            request = running.submit([BOS], SamplingParams(n=2))
            ends = [delta.finish_reason for delta in await all_of(request) if delta.finish_reason]
            assert len(ends) == 2
            assert set(ends) <= {"cancelled", "error"}
            assert len(ids_of(await all_of(running.submit([BOS], ENDLESS)))) == 90

    within(60, main)
    assert "a bug" in caplog.text


def test_leaving_ends_everything() -> None:
    async def main() -> None:
        engine = Engine(ScriptedModel({(BOS,): [65] * 10**6}, context_length=10**6), TOKENIZER, cache_tokens=10**6)
        async with AsyncEngine(engine) as running:
            requests = [running.submit([BOS], SamplingParams(10**5, n=2)) for _ in range(3)]
            await anext(aiter(requests[0]))
            requests.append(running.submit([BOS]))
        for request in requests:
            ends = [delta.finish_reason for delta in await all_of(request) if delta.finish_reason]
            assert ends == ["cancelled"] * request.request.params.n
        assert not engine.has_work
        check_books(engine)
        with pytest.raises(RuntimeError, match="not running"):
            running.submit([BOS])

    within(60, main)


def test_before_entering_nothing_is_taken() -> None:
    with pytest.raises(RuntimeError, match="not running"):
        AsyncEngine(Engine(random_model(), TOKENIZER)).submit([BOS])


def test_a_closed_loop_does_not_stop_the_engine() -> None:
    running = AsyncEngine(Engine(random_model(), TOKENIZER))

    async def leave_without_waiting() -> AsyncRequest:
        await running.__aenter__()
        return running.submit([BOS], ENDLESS)

    request = asyncio.run(leave_without_waiting())
    deadline = time.monotonic() + 30
    while not request.request.finished and time.monotonic() < deadline:
        time.sleep(0.01)
    assert request.request.finished
    assert running._thread.is_alive()
    running._stopping = True
    running._wake.set()
    running._thread.join(30)
    assert not running._thread.is_alive()


def test_conversations_are_encoded_while_results_of_calls_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokenizer is used by two threads at once."""
    conversations = [[{"role": "user", "content": f"37 * 24 {n}"}] for n in range(60)]
    scripts = {}
    encode = Engine(ScriptedModel({}), TOKENIZER).encode
    for n, conversation in enumerate(conversations):
        scripts[tuple(encode(conversation))] = [*CALL, *FORGED, *ids(f"No. {n}"), END]  # type: ignore[arg-type]

    async def main() -> None:
        async with AsyncEngine(Engine(ScriptedModel(scripts), TOKENIZER)) as running:
            tasks = []
            for conversation in conversations:
                tasks.append(asyncio.create_task(all_of(running.submit(conversation))))  # type: ignore[arg-type]
                await asyncio.sleep(0)
            for n, task in enumerate(tasks):
                parts = join_deltas(await task)
                assert parts[1:] == [{"type": "python_output", "text": "888"}, {"type": "text", "text": f"No. {n}"}]

    within(60, main)


def test_two_hundred_requests_that_come_go_and_are_cancelled() -> None:
    rng = random.Random(0)
    prompts = random_prompts(200, longest=50, seed=9)
    expected = run(Engine(random_model(), TOKENIZER), prompts, SamplingParams(20))

    async def one(running: AsyncEngine, n: int) -> bool:
        await asyncio.sleep(rng.random() * 0.5)
        request = running.submit(prompts[n], SamplingParams(20))
        patience = rng.choice([0, 1, 5, 1000, 1000])
        deltas: list[Delta] = []
        async for delta in request:
            deltas.append(delta)
            if len(deltas) == patience:
                request.cancel()
        assert deltas[-1].finish_reason is not None
        assert ids_of(deltas) == expected[n][: len(ids_of(deltas))]
        if deltas[-1].finish_reason != "cancelled":
            assert ids_of(deltas) == expected[n]
        return deltas[-1].finish_reason == "cancelled"

    async def main() -> None:
        engine = Engine(random_model(), TOKENIZER, cache_tokens=800)
        async with AsyncEngine(engine) as running:
            cancelled = await asyncio.gather(*(one(running, n) for n in range(200)))
        assert 0 < sum(cancelled) < 150
        check_books(engine)

    within(60, main)
