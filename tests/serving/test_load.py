"""Too many at once, too slow, gone half-way, broken inside: the next request is always answered."""

import asyncio
import json
import random
import socket
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from fake_engine import FakeAsyncEngine, said
from live_server import Live, live

from nanochat.serving import guards, server, streaming

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
PATH = "/v1/chat/completions"


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def works(live: Live) -> bool:
    """Whether the next request is answered."""
    return httpx.post(live.url + PATH, json=CHAT, timeout=20).json()["choices"][0]["message"]["content"] == "Hello!"


def connect(live: Live) -> socket.socket:
    url = urlsplit(live.url)
    return socket.create_connection((url.hostname, url.port), timeout=20)


def request(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


async def many(live: Live, count: int, **options: Any) -> list[int]:
    """The statuses of so many requests at once."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=live.url, timeout=30, limits=limits) as client:
        responses = await asyncio.gather(*(client.post(PATH, json={**CHAT, **options}) for _ in range(count)))
    return sorted(response.status_code for response in responses)


def test_a_full_queue_says_when_to_come_back() -> None:
    with live(lambda: FakeAsyncEngine(seconds=0.05, capacity=2, max_waiting=3), max_waiting=3) as live_server:
        assert asyncio.run(many(live_server, 12)) == [200] * 5 + [429] * 7
        running = live_server.running
        wait_until(lambda: running.engine.counts.running == 0)
        running.capacity = 0  # everything waits
        with httpx.Client(base_url=live_server.url) as client:
            waiting = [connect(live_server) for _ in range(3)]
            for one in waiting:
                one.sendall(request(CHAT))
            wait_until(lambda: running.engine.counts.waiting == 3)
            response = client.post(PATH, json=CHAT)
            assert response.status_code == 429 and response.headers["retry-after"] == "2"
            assert response.json()["error"]["code"] == "queue_full"
            assert client.get("/health").status_code == 200
        for one in waiting:
            one.close()
        running.capacity = 2
        assert works(live_server)


def test_a_request_of_many_prompts_is_let_in_whole_or_not() -> None:
    with live(lambda: FakeAsyncEngine(seconds=0.02, capacity=1, max_waiting=3)) as live_server:
        response = httpx.post(f"{live_server.url}/v1/completions", json={"prompt": ["a"] * 8})
        assert response.status_code == 429
        running = live_server.running
        assert all(one.cancelled for one in running.submitted)
        wait_until(lambda: running.engine.counts.waiting == 0)
        assert works(live_server)


def test_answers_not_yet_read_count_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.serving.service.MAX_BEING_READ", 1)
    with live(lambda: FakeAsyncEngine(seconds=0.05), max_waiting=2) as live_server:
        assert asyncio.run(many(live_server, 5)) == [200] * 3 + [429] * 2
        assert works(live_server)


@pytest.mark.parametrize("stream", [False, True])
def test_time_is_limited(stream: bool) -> None:
    with live(lambda: FakeAsyncEngine(said("x" * 400), seconds=0.02), time_limit=0.3) as live_server:
        begun = time.monotonic()
        with openai.OpenAI(base_url=f"{live_server.url}/v1", api_key="none", max_retries=0) as client:
            answer: Any = client.chat.completions.create(**CHAT, model="test/chat", stream=stream)
            if stream:
                chunks = list(answer)
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
                reason = chunks[-1].choices[0].finish_reason
            else:
                text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert reason == "length" and 1 <= len(text) <= 16 and set(text) == {"x"}
        assert time.monotonic() - begun < 3
        assert live_server.running.submitted[-1].cancelled


@pytest.mark.parametrize("stream", [False, True])
def test_who_waited_too_long_is_told_so(stream: bool) -> None:
    with live(lambda: FakeAsyncEngine(capacity=0), time_limit=0.2) as live_server:
        response = httpx.post(live_server.url + PATH, json={**CHAT, "stream": stream})
        assert response.status_code == 503 and response.json()["error"]["code"] == "time_limit"
        assert response.headers["retry-after"] == "2"
        live_server.running.capacity = 1
        assert works(live_server)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place_within_a_step(stream: bool) -> None:
    with live(lambda: FakeAsyncEngine(said("x" * 400), seconds=0.1)) as live_server:
        client = connect(live_server)
        client.sendall(request({**CHAT, "stream": stream}))
        wait_until(lambda: live_server.running.steps >= 2)
        client.close()
        counts = live_server.running.engine.counts
        begun = time.monotonic()
        wait_until(lambda: counts.running == 0)
        assert time.monotonic() - begun < 0.25  # the step under way, and the next at most
        assert live_server.running.submitted[0].request.completion_tokens < 10
        assert not live_server.service.under_way


@pytest.mark.parametrize("place", [0, 3])
def test_a_failing_engine_is_an_error_and_the_next_request_is_answered(place: int) -> None:
    with live(lambda: FakeAsyncEngine(seconds=0.03)) as live_server:
        running = live_server.running
        running.fail_at = place
        response = httpx.post(live_server.url + PATH, json=CHAT)
        assert response.status_code == 500 and response.json()["error"]["code"] == "engine_error"
        assert works(live_server)
        running.fail_at = place
        with openai.OpenAI(base_url=f"{live_server.url}/v1", api_key="none", max_retries=0) as client:
            expected = openai.InternalServerError if place == 0 else openai.APIError
            text = ""
            with pytest.raises(expected, match="the engine failed"):
                for chunk in client.chat.completions.create(**CHAT, model="test/chat", stream=True):
                    text += chunk.choices[0].delta.content or ""
            assert text == "Hello!"[:place]
        assert works(live_server)


def test_a_request_that_breaks_in_the_iteration_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with live(FakeAsyncEngine) as live_server:
        monkeypatch.setattr("fake_engine.FakeAsyncRequest.__aiter__", None)
        assert httpx.post(live_server.url + PATH, json=CHAT).status_code == 500
        monkeypatch.undo()
        assert works(live_server)


def test_silence_is_filled_with_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "HEARTBEAT_SECONDS", 0.05)
    with live(lambda: FakeAsyncEngine(capacity=0)) as live_server:
        client = connect(live_server)
        client.sendall(request({**CHAT, "stream": True}))
        time.sleep(0.4)
        live_server.running.capacity = 1
        told = b""
        while b"[DONE]" not in told:
            told += client.recv(65536)
        client.close()
        assert told.count(b": still here\n\n") >= 3 and b" 200 OK" in told
        assert told.index(b"still here") < told.index(b"data: ")


def test_clients_that_leave_at_random_moments() -> None:
    draw = random.Random(1)
    with live(lambda: FakeAsyncEngine(said("Hello!"), seconds=0.002)) as live_server:
        whole = request({**CHAT, "stream": True})
        for number in range(60):
            client = connect(live_server)
            sent = draw.choice([0, 1, 40, len(whole) - 3, len(whole)])
            client.sendall(whole[:sent])
            if sent == len(whole) and number % 2:
                client.recv(draw.choice([1, 100, 1000]))
            time.sleep(draw.random() * 0.01)
            if number % 3 == 0:  # not goodbye, but a reset
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            client.close()
        assert works(live_server)
        counts = live_server.running.engine.counts
        wait_until(lambda: counts.running == 0 and not live_server.service.under_way)
        wait_until(lambda: len(live_server.server.server_state.connections) == 0)


def test_half_open_connections_are_closed_and_harm_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.5)
    monkeypatch.setattr(guards, "BODY_SECONDS", 0.5)
    with live(FakeAsyncEngine) as live_server:
        whole = request(CHAT)
        silent = [connect(live_server) for _ in range(100)]
        for number, client in enumerate(silent):
            client.sendall(whole[: (0, 30, len(whole) - 5)[number % 3]])
        assert works(live_server)
        for number, client in enumerate(silent):
            answer = b""
            try:
                while data := client.recv(65536):
                    answer += data
            except ConnectionResetError:
                pass
            assert (b" 408 " in answer) == (number % 3 == 2)
            client.close()
        assert works(live_server)


def test_a_slow_reader_holds_nobody_up_and_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STALL_SECONDS", 4.0)
    answer = said("x" * 12_000)
    with live(lambda: FakeAsyncEngine(answer, context_length=40_000)) as live_server:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        url = urlsplit(live_server.url)
        slow.connect((url.hostname, url.port))
        body = {**CHAT, "stream": True, "logprobs": True, "top_logprobs": 5, "return_tokens": True}
        slow.sendall(request(body))
        counts = live_server.running.engine.counts
        wait_until(lambda: counts.running == 1)
        wait_until(lambda: counts.running == 0, 60)  # the engine does not wait for the reader
        assert live_server.service.under_way  # its answer is kept for it
        live_server.running.answer = said("Hello!")
        assert works(live_server)
        wait_until(lambda: not live_server.service.under_way)  # but not for ever
        slow.close()


def test_stopping_lets_answers_end_and_refuses_new_ones() -> None:
    with live(lambda: FakeAsyncEngine(said("x" * 30), seconds=0.05)) as live_server:
        client = connect(live_server)
        client.sendall(request({**CHAT, "stream": True}))
        wait_until(lambda: live_server.running.steps >= 2)
        live_server.drain()
        wait_until(lambda: live_server.service.draining)
        response = httpx.post(live_server.url + PATH, json=CHAT)
        assert response.status_code == 503 and response.json()["error"]["code"] == "shutting_down"
        assert httpx.get(f"{live_server.url}/health").status_code == 503
        told = b""
        while data := client.recv(65536):
            told += data
        assert told.count(b'"content":"x') >= 25 and b"[DONE]" in told and b'"stop"' in told
        wait_until(lambda: live_server.server.should_exit)


def test_stopping_does_not_wait_for_ever() -> None:
    with live(lambda: FakeAsyncEngine(said("x" * 400), seconds=0.05), drain_seconds=0.3) as live_server:
        client = connect(live_server)
        client.sendall(request({**CHAT, "stream": True}))
        wait_until(lambda: live_server.running.steps >= 2)
        begun = time.monotonic()
        live_server.drain()
        told = b""
        while data := client.recv(65536):
            told += data
        assert b'"code":"shutting_down"' in told and b"[DONE]" not in told  # nobody takes it for the whole answer
        assert time.monotonic() - begun < 5
        wait_until(lambda: live_server.server.should_exit)


def test_64_clients_get_their_own_answers() -> None:
    class Echo(FakeAsyncEngine):
        def submit(self, prompt: Any, params: Any, *, prefix: Any = ()) -> Any:
            self.answer = said(self.engine.tokenizer.decode(prompt[2:-2]))
            return super().submit(prompt, params, prefix=prefix)

    async def talk(live_server: Live) -> None:
        async with openai.AsyncOpenAI(base_url=f"{live_server.url}/v1", api_key="none", max_retries=0) as client:

            async def one(number: int) -> None:
                question = f"{number} " * (number % 9 + 1)
                stream = await client.chat.completions.create(
                    model="test/chat", messages=[{"role": "user", "content": question}], stream=True
                )
                assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == question

            await asyncio.gather(*(one(number) for number in range(64)))

    with live(lambda: Echo(seconds=0.001)) as live_server:
        asyncio.run(talk(live_server))
