"""The server over the real engine: what the engine answers alone is what clients get, whoever else is there."""

import asyncio
import json
import random
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from live_server import Live, live
from tiny_engine import tiny_engine

from nanochat.inference import AsyncEngine, Engine, SamplingParams

QUESTIONS = [f"{number} " * (number % 7 + 1) for number in range(32)]


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(lambda: AsyncEngine(tiny_engine())) as server:
        yield server


@pytest.fixture(scope="module")
def alone() -> Engine:
    return tiny_engine()


@pytest.fixture
def client(server: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def asked(question: str) -> list[Any]:
    return [{"role": "user", "content": question}]


def test_the_same_seed_gives_the_engines_own_answer(client: openai.OpenAI, alone: Engine) -> None:
    for options in ({"temperature": 0}, {"temperature": 1.0, "seed": 5}, {"temperature": 0.7, "seed": 6, "top_p": 0.9}):
        (expected,) = alone.generate([asked("Hi")], SamplingParams(max_new_tokens=40, **options))  # type: ignore[arg-type]
        answer = client.chat.completions.create(model="test/chat", messages=asked("Hi"), max_tokens=40, **options)  # type: ignore[call-overload]
        assert answer.choices[0].message.content == expected.text
        assert answer.choices[0].message.parts == expected.parts
        assert answer.choices[0].finish_reason == expected.finish_reason
        assert answer.usage.completion_tokens == len(expected.token_ids)


def test_every_option_at_once_is_the_engines_own_answer(client: openai.OpenAI, alone: Engine) -> None:
    params = SamplingParams(
        max_new_tokens=30,
        temperature=1.5,
        top_k=50,
        top_p=0.95,
        min_p=0.001,
        repetition_penalty=1.2,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={65: 5.0},
        seed=3,
        stop=("zz",),
        n=3,
        logprobs=4,
    )
    expected = alone.generate(["Once"], params)
    answer: Any = client.completions.create(
        model="test/chat",
        prompt="Once",
        max_tokens=30,
        temperature=1.5,
        top_p=0.95,
        presence_penalty=0.5,
        frequency_penalty=0.25,
        logit_bias={"65": 5},
        seed=3,
        stop=["zz"],
        n=3,
        logprobs=4,
        extra_body={"top_k": 50, "min_p": 0.001, "repetition_penalty": 1.2, "return_tokens": True},
    )
    for choice, result in zip(answer.choices, expected):
        assert choice.text == result.text
        assert [token["id"] for token in choice.tokens] == result.token_ids
        assert [token["logprob"] for token in choice.tokens] == pytest.approx(result.logprobs)
        assert all(len(token["top"]) == 4 for token in choice.tokens if not token["forced"])


def test_an_answer_goes_on_from_another_token(client: openai.OpenAI, alone: Engine) -> None:
    def ask(**extra: Any) -> Any:
        return client.chat.completions.create(
            model="test/chat",
            messages=asked("Hi"),
            max_tokens=12,
            temperature=0,
            logprobs=True,
            top_logprobs=5,
            extra_body={"return_tokens": True, **extra},
        ).choices[0]

    tokens = ask().tokens
    other = next(one["id"] for one in tokens[3]["top"] if one["id"] not in (tokens[3]["id"], 260) and one["id"] < 256)
    beginning = [*(token["id"] for token in tokens[:3]), other]
    branch = ask(prefix_token_ids=beginning).tokens
    assert [token["id"] for token in branch[:4]] == beginning
    assert [token["forced"] for token in branch[:5]] == [True] * 4 + [False]
    assert len(branch) == 4 + 12  # max_tokens counts what the model adds
    again = ask(prefix_token_ids=[token["id"] for token in tokens[:3]]).tokens
    assert [token["id"] for token in again[: len(tokens)]] == [token["id"] for token in tokens]


def test_a_prompt_that_was_there_before_is_cached(client: openai.OpenAI) -> None:
    def cached() -> int:
        answer = client.completions.create(model="test/chat", prompt="a long beginning " * 6, max_tokens=2)
        assert answer.usage and answer.usage.prompt_tokens_details
        return answer.usage.prompt_tokens_details.cached_tokens or 0

    first = cached()
    assert cached() > first


def test_a_message_with_parts_goes_back_as_it_came(client: openai.OpenAI, alone: Engine) -> None:
    first = client.chat.completions.create(model="test/chat", messages=asked("Hi"), temperature=0, max_tokens=20)
    message: Any = first.choices[0].message
    conversation: Any = [
        *asked("Hi"),
        {"role": "assistant", "content": message.parts},
        {"role": "user", "content": "And?"},
    ]
    (expected,) = alone.generate([conversation], SamplingParams(max_new_tokens=20))
    messages: Any = [*asked("Hi"), message, {"role": "user", "content": "And?"}]
    second = client.chat.completions.create(model="test/chat", messages=messages, temperature=0, max_tokens=20)
    assert second.choices[0].message.content == expected.text


def test_many_at_once_are_not_mixed_up(server: Live, alone: Engine) -> None:
    expected = alone.generate([asked(question) for question in QUESTIONS], SamplingParams(max_new_tokens=40))

    async def talk() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(question: str) -> str:
                stream = await client.chat.completions.create(
                    model="test/chat", messages=asked(question), stream=True, temperature=0, max_tokens=40
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*map(one, QUESTIONS))

    assert asyncio.run(talk()) == [result.text for result in expected]


def test_requests_that_only_the_engine_can_refuse(client: openai.OpenAI) -> None:
    for extra in ({"temperature": 1e-6}, {"logit_bias": {"5000": 1}}, {"prefix_token_ids": [5000]}):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="test/chat", messages=asked("Hi"), extra_body=extra)
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(
            model="test/chat", messages=asked("Hi"), extra_body={"prefix_token_ids": [65] * 255}
        )
    assert error.value.code == "context_length_exceeded"


def test_a_failing_model_is_an_error_and_the_next_request_is_answered(
    server: Live, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(server.running.engine._runner, "run", broken)
    with pytest.raises(openai.InternalServerError, match="the engine failed"):
        client.chat.completions.create(model="test/chat", messages=asked("Hi"))
    monkeypatch.undo()
    assert client.chat.completions.create(model="test/chat", messages=asked("Hi"), max_tokens=3).choices


def test_clients_that_leave_free_their_places(server: Live) -> None:
    draw = random.Random(2)
    url = urlsplit(server.url)
    for number in range(60):
        options = {"stream": bool(number % 2), "temperature": 1, "prefix_token_ids": [65] * (number % 3), "n": 2}
        content = json.dumps({"messages": asked("Hi"), **options}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n"
        with socket.create_connection((url.hostname, url.port)) as client:
            client.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + content)
            time.sleep(draw.random() * 0.02)
    end = time.monotonic() + 10
    while server.service.under_way or server.running.engine.stats().running or server.running.engine.stats().waiting:
        assert time.monotonic() < end
        time.sleep(0.01)
    stats = server.running.engine.stats()
    assert stats.pages_used <= stats.pages_cached  # nothing is held but what the cache remembers
    response = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": asked("Hi"), "max_tokens": 3})
    assert response.status_code == 200


def test_the_engines_figures_are_among_the_metrics(server: Live) -> None:
    text = httpx.get(f"{server.url}/metrics").text
    for name in ("running", "waiting", "pages_used", "pages_total"):
        assert f"nanochat_engine_{name} " in text
