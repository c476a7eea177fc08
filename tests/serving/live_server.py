"""A server for tests: the real uvicorn set-up on a free port of this machine, in a thread beside the test."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from nanochat.serving.api import build_app
from nanochat.serving.server import Server, address, config, listen
from nanochat.serving.service import Service, Settings


class Live:
    """Where the server is, what serves, and what stops it."""

    url: str
    service: Service
    server: Server
    running: Any

    def drain(self) -> None:
        """What SIGTERM does."""
        self.server.handle_exit(15, None)


@contextlib.contextmanager
def live(make_running: Callable[[], Any], **settings: Any) -> Iterator[Live]:
    """Serve the engine that `make_running` returns (in the server's thread, as an engine needs its loop)."""
    server = Live()
    ready = threading.Event()

    async def main() -> None:
        running = make_running()
        async with running if hasattr(running, "__aenter__") else contextlib.nullcontext(running) as server.running:
            app, server.service = build_app(server.running, Settings(**{"model": "test/chat"} | settings))
            listening = listen("127.0.0.1", 0)
            server.url = address(listening)
            server.server = Server(config(app), server.service)
            ready.set()
            await server.server.serve(sockets=[listening])

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield server
    finally:
        server.server.should_exit = server.server.force_exit = True
        thread.join(20)
        assert not thread.is_alive()
