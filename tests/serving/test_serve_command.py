"""`nanochat serve` as a program: it says where the page is, answers, and stops when it is told to."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from scripted_model import byte_tokenizer
from tiny_engine import tiny_model

from nanochat.checkpoints.folder import save_model
from nanochat.common import UserError
from nanochat.serving.server import listen, model_id

NANOCHAT = [sys.executable, "-c", "from nanochat.cli import main; main()", "serve"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "runs" / "tiny" / "chat"
    save_model(tiny_model(), byte_tokenizer(), folder)
    return folder


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Any]:
    """Start the program; returns it, and the URL it prints."""
    processes = []

    def start(*arguments: Any, cwd: Path = tmp_path, **environment: str) -> tuple[subprocess.Popen[str], str]:
        with open(tmp_path / "log", "w") as log:
            process = subprocess.Popen(
                [*NANOCHAT, "--port", "0", *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=cwd,
                env={**os.environ, **environment},
            )
        processes.append(process)
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"chat at (http://\S+?)/,", line)
        assert found, line + (tmp_path / "log").read_text()
        return process, found[1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_it_serves_the_newest_model_and_stops_on_sigterm(serve: Any, model: Path, tmp_path: Path) -> None:
    process, url = serve(cwd=model.parents[2])
    assert url.startswith("http://127.0.0.1:")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        assert [one.id for one in client.models.list().data] == ["tiny/chat"]
        stream = client.chat.completions.create(
            model="tiny/chat", messages=[{"role": "user", "content": "Hi"}], stream=True, logprobs=True
        )
        next(stream)
        process.send_signal(signal.SIGTERM)
        *_, last = stream
        assert last.choices[0].finish_reason in ("stop", "length")
    assert process.wait(20) == 0
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(event["event"] for event in events) == ["draining", "ready", "request", "request"]


def test_the_key_may_come_from_the_environment(serve: Any, model: Path) -> None:
    _, url = serve(model, "--quantize", "bf16", NANOCHAT_API_KEY="secret")
    assert httpx.get(f"{url}/v1/models").status_code == 401
    assert httpx.get(f"{url}/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200


def test_a_second_signal_stops_at_once(serve: Any, model: Path) -> None:
    process, url = serve(model)
    body = {"messages": [{"role": "user", "content": "Hi"}], "n": 128, "stream": True, "temperature": 2}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=30) as response:
        next(response.iter_raw())
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        begun = time.monotonic()
        process.wait(20)
        assert time.monotonic() - begun < 5


def test_other_machines_without_a_key_are_warned_of(serve: Any, model: Path, tmp_path: Path) -> None:
    _, url = serve(model, "--host", "0.0.0.0")
    assert url.startswith("http://127.0.0.1:")
    assert httpx.get(f"{url}/health").status_code == 200
    assert "asks for no API key" in (tmp_path / "log").read_text()


def test_a_place_that_is_taken_is_a_users_mistake(model: Path) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"can't listen on 127.0.0.1, port {port}"):
            listen("127.0.0.1", port)
        done = subprocess.run([*NANOCHAT, str(model), "--port", str(port)], capture_output=True, text=True)
        assert done.returncode == 2 and "try another --port" in done.stderr and "Traceback" not in done.stderr
    with pytest.raises(UserError, match=r"no\.such\.host"):
        listen("no.such.host.invalid", 1)
    with pytest.raises(UserError, match="port 70000"):
        listen("127.0.0.1", 70000)


def test_the_id_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "demo" / "chat").mkdir(parents=True)
    assert model_id(f"{tmp_path}/demo/chat/") == "demo/chat"
    assert model_id("somebody/nanochat") == "somebody/nanochat"
