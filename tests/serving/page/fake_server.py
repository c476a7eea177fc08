"""A server that speaks the API of `nanochat serve` and says what a test wants: exact tokens, errors, silence.

    python fake_server.py PORT [KEY]

What it answers depends on the last message alone: `say TEXT` is answered with TEXT, `slowly say TEXT` with a tenth of a
second between tokens, `fail STATUS` with that error, `fail later` with an error in the middle of the stream, a question
of the Primer as the Primer would. The probability of a token depends on its place. Every request is remembered; GET
/requests hands them out.
"""

import json
import math
import re
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[3] / "src/nanochat/serving/page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
CONTROL = ["<|assistant_end|>", "<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"]
END, PYTHON, PYTHON_END, OUTPUT, OUTPUT_END = CONTROL
SUM = [PYTHON, "37", "*", "24", PYTHON_END, OUTPUT, "888", OUTPUT_END, "37", " times", " 24", " is", " 888", "."]
ANSWERS = {
    "What is 37 times 24?": SUM,
    "What is the capital of France?": ["The", " capital", " of", " France", " is", " Paris", "."],
}
OTHERS = [" Lyon", " the", "\n", " a", END]  # what else the model might have said, likeliest first
PROBABILITIES = [0.97, 0.62, 0.31, 0.12, 0.031]  # of the token at place 0, 1, …, and again
CONTEXT = 2000  # characters in all messages
requests: list[dict[str, Any]] = []
texts: list[str] = [*CONTROL]  # by id


def token_of(text: str, logprob: float | None = None, **more: Any) -> dict[str, Any]:
    if text not in texts:
        texts.append(text)
    return {"id": texts.index(text), "text": text, "logprob": logprob, "control": text in CONTROL, **more}


def answer_to(message: str) -> list[str]:
    """The tokens of the answer, the last one ending it."""
    said = ANSWERS.get(message) or re.findall(r"\s?\w+|\s|\S", message.partition("say ")[2] or "I don't know that.")
    return [*said, END]


def with_prefix(tokens: list[str], prefix: list[int]) -> list[str]:
    """The answer that begins with `prefix`: as it was where it agrees, else the model makes the best of it."""
    given = [texts[id] for id in prefix]
    if given == tokens[: len(given)]:
        return tokens
    return [*given, *([] if END in given else [",", " of", " course", ".", END])]


def chunks(tokens: list[str], forced: int) -> Iterator[dict[str, Any]]:
    """Deltas as the server sends them, each with one token."""
    kind, part = "text", 0
    yield {"role": "assistant", "content": ""}, []
    for place, text in enumerate(tokens):
        first = PROBABILITIES[place % len(PROBABILITIES)]
        others = [token_of(other, math.log((1 - first) / 2 ** (n + 1))) for n, other in enumerate(OTHERS[:4])]
        by_engine = text in (OUTPUT, OUTPUT_END) or kind == "python_output"
        if by_engine or place < forced:
            token = token_of(text, None, top=[], forced=True)
        else:
            chosen = token_of(text, math.log(first))
            top = sorted([chosen, *others], key=lambda one: -one["logprob"])
            token = {**chosen, "top": top, "forced": False}
        if text in CONTROL:
            starts = {PYTHON: "python", OUTPUT: "python_output", PYTHON_END: "text", OUTPUT_END: "text"}
            kind, part = starts.get(text, kind), part + (text in starts)
            yield {"part": {"index": part, "type": kind, "text": ""}}, [token]
        else:
            piece = {"part": {"index": part, "type": kind, "text": text}}
            yield {**piece, **({"content": text} if kind == "text" else {})}, [token]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    key: str | None = None

    def log_message(self, *_: Any) -> None:
        pass

    def send(self, status: int, body: str | bytes, type: str = "application/json", **headers: str) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": type, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def error(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        self.send(status, json.dumps({"error": error}), **headers)

    def authorized(self) -> bool:
        if self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            self.error(401, "Incorrect API key provided.", "invalid_api_key")
            return False
        return True

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/health":
            self.send(200, json.dumps({"status": "ok", "insight": "/insight"}))
        elif path == "/requests":
            self.send(200, json.dumps(requests))
        elif path == "/v1/models":
            if self.authorized():
                self.send(200, json.dumps({"object": "list", "data": [{"id": "demo", "object": "model"}]}))
        else:
            name = "index.html" if path == "/" else path.removeprefix("/page/")
            file = PAGE / name
            if "/" in name or not file.is_file():
                self.error(404, "There is no such page.")
            else:
                self.send(200, file.read_bytes(), TYPES[file.suffix])

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.authorized():
            return
        size = len(json.dumps(body["messages"]))
        if self.path == "/tokenize":
            return self.send(200, json.dumps({"count": size, "max_model_len": CONTEXT}))
        requests.append(body)
        message = body["messages"][-1]["content"]
        if (status := re.fullmatch(r"fail (\d+)", message)) is not None:
            retry = {"Retry-After": "3"} if status[1] == "429" else {}
            self.error(int(status[1]), "This is what you asked for.", **retry)
        elif size > CONTEXT:
            self.error(400, "The conversation is longer than the context.", "context_length_exceeded")
        else:
            self.stream(message, body.get("prefix_token_ids", []))

    def stream(self, message: str, prefix: list[int]) -> None:
        self.send_response(200)
        for name, value in {**HEADERS, "Content-Type": "text/event-stream", "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        tokens = with_prefix(answer_to(message), prefix)
        try:
            for place, (delta, given) in enumerate(chunks(tokens, len(prefix))):
                self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": None, "tokens": given}]})
                if message == "fail later" and place == 2:
                    return self.event(
                        {"error": {"message": "The engine failed.", "type": "server_error", "code": None}}
                    )
                time.sleep(0.1 if message.startswith("slowly") and place > len(prefix) else 0.002)
            self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            usage = {"prompt_tokens": 40, "completion_tokens": len(tokens), "total_tokens": 40 + len(tokens)}
            extra = {
                "prompt_tokens": 40,
                "cached_tokens": 32,
                "time_to_first_token": 0.0312,
                "tokens_per_second": 412.7,
            }
            self.event({"choices": [], "usage": usage, "nanochat": extra})
            self.wfile.write(b"data: [DONE]\n\n")
        except (BrokenPipeError, ConnectionResetError):
            requests.append({"disconnected": message})

    def event(self, value: dict[str, Any]) -> None:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "demo"}
        self.wfile.write(f"data: {json.dumps(value if 'error' in value else {**head, **value})}\n\n".encode())
        self.wfile.flush()


if __name__ == "__main__":
    Handler.key = sys.argv[2] if len(sys.argv) > 2 else None
    ThreadingHTTPServer.allow_reuse_address = True
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
