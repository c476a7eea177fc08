"""`nanochat serve`: the application behind uvicorn, on a socket, until it is told to stop."""

import asyncio
import ipaddress
import logging
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nanochat.common import UserError
from nanochat.inference import AsyncEngine, Engine
from nanochat.serving.api import build_app
from nanochat.serving.logs import log, log_to
from nanochat.serving.service import Service, Settings

HEADER_SECONDS = 30.0  # within which a new connection must have sent its first request's head
# Python's lock changes hands at least so often. The engine's thread takes it many times in a step; with the usual 5 ms
# it would wait as long each time while the event loop writes what the step before has brought.
SWITCH_SECONDS = 0.0005
STALL_SECONDS = 60.0  # a client that has not made room in its connection for so long is gone


class Connection(HttpToolsProtocol):
    """uvicorn's connection, with an end to patience: for clients that send no request and those that read no answer."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start to wait for the first request."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._wait(HEADER_SECONDS)

    def on_headers_complete(self) -> None:
        """A request is here."""
        self._wait(None)
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        self._wait(STALL_SECONDS)

    def resume_writing(self) -> None:
        """It has read."""
        super().resume_writing()
        self._wait(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._wait(None)
        super().connection_lost(exc)

    def _wait(self, seconds: float | None) -> None:
        if self._patience is not None:
            self._patience.cancel()
        self._patience = self.loop.call_later(seconds, self.transport.abort) if seconds else None


class Server(uvicorn.Server):
    """uvicorn's server, which on SIGTERM or Ctrl-C first lets the answers under way end; a second signal is the last.

    While it drains it still listens, so that clients are told (503) instead of finding nobody.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._signals = 0
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take note of a signal."""
        self._signals += 1
        if self._signals > 1:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Look for the signal; uvicorn calls it ten times a second."""
        if self._signals and self._draining is None:
            log("draining", under_way=len(self.service.under_way))
            self._draining = asyncio.create_task(self.service.drain())
        if self._draining is not None and self._draining.done():
            self.should_exit = True
        return await super().on_tick(counter)


def serve(load: Callable[[], Engine], settings: Settings, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C; a line on standard output says where the page is.

    Args:
        load: Returns what answers; called once the address is ours, so that a mistake there costs no loading.
        settings: How it is served.
        host: Address to listen on.
        port: 0 takes a free one.

    Raises:
        UserError: nothing can listen there, or `load` raises it.
    """
    listening = listen(host, port)
    engine = load()
    log_to()
    if not ipaddress.ip_address(listening.getsockname()[0]).is_loopback and settings.api_key is None:
        log("other machines can reach this server and it asks for no API key", logging.WARNING)
    sys.setswitchinterval(SWITCH_SECONDS)
    loop_factory = config(None).get_loop_factory()  # uvloop's, where there is one
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(_serve(engine, settings, listening))


async def _serve(engine: Engine, settings: Settings, listening: socket.socket) -> None:
    async with AsyncEngine(engine, max_waiting=settings.max_waiting) as running:
        app, service = build_app(running, settings)
        url = address(listening)
        log("ready", model=settings.model, engine=engine.describe(), url=url)
        print(f"{settings.model}: chat at {url}/, API at {url}/v1; Ctrl-C stops it", flush=True)
        await Server(config(app), service).serve(sockets=[listening])


def model_id(source: str) -> str:
    """Return the id under which clients know a model: of a folder its last two names (`demo/chat`), a hub id as it is.

    >>> model_id("runs/demo/chat/")
    'demo/chat'
    """
    folder = Path(source).expanduser()
    return "/".join(folder.resolve().parts[-2:]) if folder.is_dir() else source


def config(app: Any) -> uvicorn.Config:
    """Return how uvicorn runs the application."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        UserError: there is no such address here, or somebody else listens there.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # A client whose machine vanished without a word is noticed; connections inherit it.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listening.bind((host, port))
        listening.listen(1024)
    except (OSError, OverflowError) as error:
        raise UserError(f"can't listen on {host}, port {port}: {error}; try another --port or --host") from error
    return listening


def address(listening: socket.socket) -> str:
    """Return the URL of a listening socket, as a browser on this machine opens it."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"
