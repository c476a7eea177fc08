"""The chat page in headless Chromium."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_driver import SECONDS, Chat, Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if CHROMIUM is None:
        skip = pytest.mark.skip(reason="there is no Chromium here (Debian: apt-get install chromium)")
        for item in items:
            if Path(__file__).parent in item.path.parents and "browser" in item.fixturenames:  # type: ignore[attr-defined]
                item.add_marker(skip)


@pytest.fixture(scope="module")  # while it lives its thread has a running event loop, which other tests mind
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    server = Server()
    yield server
    server.kill()


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of the test's own."""
    server = Server()
    yield server
    server.kill()


@pytest.fixture
def open_chat(browser: Any) -> Iterator[Callable[..., Chat]]:
    """Opens the page in a new browser profile; at the end nothing may have gone wrong in it, nor left the origin."""
    chats: list[Chat] = []

    def open_chat(url: str, **options: Any) -> Chat:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        context.set_default_timeout(SECONDS * 1000)
        chats.append(Chat(context.new_page(), url))
        return chats[-1]

    yield open_chat
    for chat in chats:
        chat.page.context.close()
    assert [chat.trouble for chat in chats if chat.trouble] == []


@pytest.fixture
def chat(open_chat: Callable[..., Chat], shared_server: Server) -> Chat:
    return open_chat(shared_server.url)
