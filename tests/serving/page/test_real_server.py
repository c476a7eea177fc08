"""The page before the real server: `nanochat serve` with a tiny model that says noise, in a process of its own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chat_driver import Chat
from fake_server import HEADERS
from tiny_engine import byte_tokenizer, tiny_model

from nanochat.inference import Engine, SamplingParams
from nanochat.serving.guards import SECURITY_HEADERS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    folder = tmp_path_factory.mktemp("models") / "noise" / "chat"
    tiny_model().save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "nanochat", "serve", str(folder), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    line = process.stdout.readline()  # type: ignore[union-attr]
    assert "chat at http://127.0.0.1:" in line
    yield line.partition("chat at ")[2].partition("/,")[0]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0


def test_the_fake_server_has_the_headers_of_the_real_one() -> None:
    assert SECURITY_HEADERS["content-security-policy"] == HEADERS["Content-Security-Policy"]


def test_the_page_and_the_real_server(open_chat: Callable[..., Chat], url: str, folder: Path) -> None:
    # One test for all, so that of several test processes one alone starts a server.
    answers_are_the_engines(open_chat(url), Engine.from_pretrained(str(folder)))
    a_long_conversation_forgets_its_beginning(open_chat(url))
    what_is_longer_than_the_context_is_refused_in_words(open_chat(url))


def answers_are_the_engines(chat: Chat, engine: Engine) -> None:
    chat.until(lambda: chat.texts("#model") == ["noise/chat"])
    chat.page.click("#settings-button")
    chat.page.get_by_label("Temperature").fill("1")
    chat.page.get_by_label("Seed").fill("7")
    chat.page.get_by_label("Most tokens").fill("24")
    chat.page.keyboard.press("Escape")
    chat.ask("Hello")
    chat.page.click("#token-view")

    (result,) = engine.generate([[{"role": "user", "content": "Hello"}]], SamplingParams(24, 1.0, seed=7))
    kept = "JSON.parse(Object.entries(localStorage).find(([key]) => key.startsWith('nanochat.conversation'))[1])"
    answers = f"{kept}.children[0].children.map((answer) => answer.tokens.map((token) => token.id))"
    assert chat.page.evaluate(answers) == [result.token_ids]
    assert "24 tokens" in chat.texts(".speed")[0] and "tokens/s" in chat.texts(".speed")[0]

    chat.page.locator(".tokens .token").nth(5).click()
    chat.page.locator("#alternatives button:enabled").last.click()
    chat.settled()
    first, branch = chat.page.evaluate(answers)
    assert branch[:5] == first[:5] and branch[5] != first[5] and len(branch) == 24 + 6
    assert chat.texts(".tokens .given") == []  # what is known about the beginning stays
    assert chat.texts("[role=group]") == ["2 / 2"]

    chat.press("Answer again")
    chat.settled()
    (again,) = engine.generate([[{"role": "user", "content": "Hello"}]], SamplingParams(24, 1.0, seed=9))
    assert chat.page.evaluate(answers)[2] == again.token_ids


def a_long_conversation_forgets_its_beginning(chat: Chat) -> None:
    for _ in range(3):
        chat.ask("x" * 60)  # a token a character, and 256 tokens of context
    assert chat.texts("article .error") == []
    assert any("forgotten the oldest part" in note for note in chat.texts(".note"))


def what_is_longer_than_the_context_is_refused_in_words(chat: Chat) -> None:
    chat.send("x" * 300)
    chat.page.wait_for_selector("article .error")
    assert "context is 256" in chat.texts("article .error p")[0]
