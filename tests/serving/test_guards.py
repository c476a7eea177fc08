"""Who gets in, what browsers are told, and what is written down."""

import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeAsyncEngine
from live_server import Live, live

from nanochat.serving.logs import log_to

CHAT = {"messages": [{"role": "user", "content": "my secret"}]}


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(
        FakeAsyncEngine,
        api_key="sésame",
        allowed_hosts=("chat.example.org",),
        allowed_origins=("https://friend.example",),
    ) as server:
        yield server


@pytest.fixture
def client(server: Live) -> Iterator[httpx.Client]:
    key = {"authorization": "Bearer sésame".encode()}
    with httpx.Client(base_url=server.url, headers=key, timeout=20) as client:  # type: ignore[arg-type]
        yield client


def error(response: httpx.Response, status: int, code: str | None) -> dict[str, Any]:
    """The error in a response, which has OpenAI's shape and the headers of every response."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    (body,) = response.json().values()
    assert set(body) == {"message", "type", "param", "code"} and body["code"] == code
    return body  # type: ignore[no-any-return]


@pytest.mark.parametrize("key", [None, "", "sésame", "Bearer", "Bearer sesame", "bearer sésame", "Basic x"])
def test_without_the_key_nobody_gets_in(server: Live, key: str | None) -> None:
    headers: Any = {"authorization": key.encode()} if key is not None else {}
    for method, path in (
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/nope"),
    ):
        response = httpx.request(method, server.url + path, headers=headers)
        body = error(response, 401, "invalid_api_key")
        assert body["type"] == "authentication_error" and response.headers["www-authenticate"] == "Bearer"


def test_health_and_the_page_need_no_key(server: Live) -> None:
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/").status_code == 200
    assert httpx.get(f"{server.url}/page/app.js").status_code == 200
    assert httpx.get(f"{server.url}/page/../v1/models").status_code == 401
    assert httpx.get(f"{server.url}/page/%2e%2e/%2e%2e/server.py").status_code in (401, 404)


def test_the_page_may_load_nothing_from_elsewhere(server: Live) -> None:
    headers = httpx.get(f"{server.url}/").headers
    assert headers["content-type"].startswith("text/html")
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    assert headers["x-frame-options"] == "DENY" and headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-cache" and "server" not in headers


@pytest.mark.parametrize(
    "host", ["localhost:8000", "127.0.0.1", "[::1]:80", "192.168.0.7:8000", "Chat.Example.org:443"]
)
def test_hosts_that_are_ours(client: httpx.Client, host: str) -> None:
    assert client.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil:80", "", "[::1", "x" * 5000]
)
def test_a_strangers_host_is_refused(client: httpx.Client, host: str) -> None:
    error(client.get("/health", headers={"host": host}), 421, "wrong_host")


def test_pages_of_other_origins_are_refused(client: httpx.Client) -> None:
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "https://friend.example.evil"):
        error(client.post("/v1/chat/completions", json=CHAT, headers={"origin": origin}), 403, "wrong_origin")
    own = str(client.base_url).rstrip("/")
    response = client.post("/v1/chat/completions", json=CHAT, headers={"origin": own})
    assert response.status_code == 200 and "access-control-allow-origin" not in response.headers


def test_an_allowed_origin_may_use_the_api(client: httpx.Client) -> None:
    origin = {"origin": "https://friend.example"}
    preflight = client.options(
        "/v1/chat/completions", headers={**origin, "access-control-request-method": "POST", "authorization": ""}
    )
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == "https://friend.example"
    assert preflight.headers["access-control-allow-headers"] == "authorization, content-type"
    response = client.post("/v1/chat/completions", json=CHAT, headers=origin)
    assert response.status_code == 200 and response.headers["vary"] == "origin"
    assert response.headers["access-control-allow-origin"] == "https://friend.example"
    assert "access-control-allow-credentials" not in response.headers


def test_bodies_that_are_no_request(client: httpx.Client) -> None:
    def post(content: bytes, kind: str = "application/json") -> httpx.Response:
        return client.post("/v1/chat/completions", content=content, headers={"content-type": kind})

    bad = (
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b'"x"',
        b"\xff",
        b"{" * 100_000,
        b"[" * 100_000,
        b"9" * 10_000,
        b'{"a":NaN}',
    )
    for content in bad:
        response = post(content)
        assert error(response, 400, response.json()["error"]["code"])["type"] == "invalid_request_error"
    whole = json.dumps(CHAT).encode()
    error(post(whole, "text/plain"), 400, None)  # what a page of another origin could send without asking
    surrogate = b'{"messages": [{"role": "user", "content": "\\ud800"}], "\\udfff": 1}'
    assert post(surrogate).status_code == 400
    assert post(whole).status_code == 200


def test_a_body_too_large(client: httpx.Client) -> None:
    for size in (2**20 + 1, 10_000_000):
        response = client.post("/v1/chat/completions", content=b"x" * size)
        assert "1048576" in error(response, 413, "body_too_large")["message"]

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 100_000

    error(client.post("/v1/chat/completions", content=chunks()), 413, "body_too_large")
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_paths_and_methods_that_are_none(client: httpx.Client) -> None:
    error(client.get("/nope"), 404, None)
    error(client.get("/v1/chat/completions"), 405, None)
    error(client.post("/v1/models"), 405, None)
    error(client.get("/page/nope.js"), 404, None)


def test_a_bug_shows_no_traceback(server: Live, client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("/home/me/secret.py")

    monkeypatch.setattr(server.running.engine, "encode", broken)
    response = client.post("/v1/chat/completions", json=CHAT)
    assert error(response, 500, "internal_error")["type"] == "server_error"
    assert "secret" not in response.text and "Traceback" not in response.text
    monkeypatch.undo()
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


class Lines(list[dict[str, Any]]):
    """A stream that keeps the events written to it."""

    def write(self, text: str) -> None:
        self.extend(json.loads(line) for line in text.splitlines() if line)

    def flush(self) -> None: ...

    def requests(self, count: int) -> list[dict[str, Any]]:
        """Wait for so many requests: the client has its answer before the line is written."""
        end = time.monotonic() + 10
        while len(lines := [line for line in self if line["event"] == "request"]) < count:
            assert time.monotonic() < end
            time.sleep(0.01)
        return lines


@pytest.fixture
def logged() -> Iterator[Lines]:
    names = ("nanochat.serving", "uvicorn")
    before = [(logging.getLogger(name), vars(logging.getLogger(name)).copy()) for name in names]
    lines = Lines()
    log_to(lines)  # type: ignore[arg-type]
    yield lines
    for logger, state in before:
        vars(logger).update(state)


def test_requests_are_logged_without_what_was_said(client: httpx.Client, logged: Lines) -> None:
    response = client.post("/v1/chat/completions", json=CHAT)
    streamed = client.post("/v1/chat/completions", json={**CHAT, "stream": True})
    first, second = logged.requests(2)
    assert first["id"] == response.headers["x-request-id"] and second["id"] == streamed.headers["x-request-id"]
    assert first["answer"] == response.json()["id"]
    for line in (first, second):
        assert (line["event"], line["method"], line["path"]) == ("request", "POST", "/v1/chat/completions")
        assert (line["status"], line["completion_tokens"], line["client"]) == (200, 7, "127.0.0.1")
        assert line["seconds"] >= 0 and line["time_to_first_token"] == 0.01
    assert "secret" not in str(logged) and "Hello" not in str(logged) and "sésame" not in str(logged)


def test_what_was_said_is_logged_where_wanted(logged: Lines) -> None:
    with live(FakeAsyncEngine, log_content=True) as server:
        for stream in (False, True):
            httpx.post(f"{server.url}/v1/chat/completions", json={**CHAT, "stream": stream})
    for line in logged.requests(2):
        assert line["request"]["messages"] == [{"role": "user", "content": "my secret"}]
        assert line["answers"] == [[{"type": "text", "text": "Hello!"}]]


def test_a_bug_is_logged_with_its_traceback(
    server: Live, client: httpx.Client, logged: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.running.engine, "encode", None)
    client.post("/v1/chat/completions", json=CHAT)
    (line,) = logged.requests(1)
    assert line["level"] == "error" and line["status"] == 500 and "TypeError" in line["traceback"]


def test_metrics(client: httpx.Client) -> None:
    def value(name: str) -> float:
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    names = ['requests_total{route="/v1/chat/completions",status="200"}', "prompt_tokens_total"]
    names += ["cached_tokens_total", "generated_tokens_total", "time_to_first_token_seconds_count"]
    before = [value(f"nanochat_{name}") for name in names]
    response = client.post("/v1/chat/completions", json=CHAT)
    prompt = response.json()["usage"]["prompt_tokens"]
    after = [value(f"nanochat_{name}") for name in names]
    assert [b - a for a, b in zip(before, after)] == [1, prompt, 3, 7, 1]
    assert value("nanochat_engine_running") == 0
    assert client.get("/metrics").headers["content-type"].startswith("text/plain")
    client.get("/made/up/by/a/scanner")
    assert "scanner" not in client.get("/metrics").text  # labels are bounded


def test_tokenize_and_detokenize(client: httpx.Client) -> None:
    def post(path: str, **body: Any) -> httpx.Response:
        return client.post(path, json=body)

    answer = post("/tokenize", prompt="Hé").json()
    assert answer == {
        "tokens": [256, 72, 0xC3, 0xA9],
        "token_strs": ["<|bos|>", "H", "\ufffd", "\ufffd"],
        "count": 4,
        "max_model_len": 512,
    }
    assert post("/detokenize", tokens=answer["tokens"]).json() == {"prompt": "<|bos|>Hé"}
    assert post("/tokenize", prompt="Hé", add_special_tokens=False).json()["count"] == 3
    assert post("/tokenize", prompt="").json()["tokens"] == [256]
    chat = post("/tokenize", messages=CHAT["messages"]).json()["tokens"]
    assert post("/detokenize", tokens=chat).json()["prompt"].startswith("<|bos|><|user_start|>my secret<|user_end|>")
    error(post("/tokenize", prompt="x", messages=CHAT["messages"]), 400, "invalid_value")
    error(post("/tokenize"), 400, "invalid_value")
    assert error(post("/detokenize", tokens=[1, 265]), 400, None)["param"] == "tokens[1]"
    error(post("/tokenize", prompt="x", model="other"), 404, "model_not_found")
