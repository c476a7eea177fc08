"""The engine for asyncio: its steps run in a thread of their own, answers come as asynchronous iterators."""

import asyncio
import contextlib
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from nanochat.inference.engine import Engine, Prompt
from nanochat.inference.request import Request
from nanochat.inference.sampling import SamplingParams
from nanochat.inference.transcript import Delta

logger = logging.getLogger(__name__)


class QueueFullError(Exception):
    """More requests wait than the engine may let wait; try again later."""


class AsyncRequest:
    """A request whose pieces come with `async for`; it ends after the last piece of each of its answers."""

    def __init__(self, request: Request, engine: "AsyncEngine") -> None:
        self.request = request
        self._engine = engine
        self._deltas: asyncio.Queue[Delta] = asyncio.Queue()
        self._open = request.params.n

    def cancel(self) -> None:
        """Free its place before the next step; the answers that are not finished end with "cancelled"."""
        self._engine._cancel(self)

    async def __aiter__(self) -> AsyncIterator[Delta]:
        while self._open:
            delta = await self._deltas.get()
            self._open -= delta.finish_reason is not None
            yield delta


class AsyncEngine:
    """Runs an engine in a thread for the tasks of one event loop.

    Use it as `async with AsyncEngine(engine) as running:`; leaving ends what still runs with "cancelled".

    Args:
        engine: Nobody else may call its methods meanwhile, but those that only look.
        max_waiting: The most requests that may wait for their turn; one more raises QueueFullError.
    """

    def __init__(self, engine: Engine, max_waiting: int = 256) -> None:
        self.engine = engine
        self.max_waiting = max_waiting
        self._requests: dict[Request, AsyncRequest] = {}  # the thread's own
        self._inbox: deque[Callable[[], Any]] = deque()  # what the thread is to do before the next step
        self._coming = 0  # requests in the inbox
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="nanochat-engine", daemon=True)

    async def __aenter__(self) -> "AsyncEngine":
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        self._wake.set()
        await asyncio.to_thread(self._thread.join)

    def submit(
        self, prompt: Prompt, params: SamplingParams | None = None, *, prefix: Sequence[int] = ()
    ) -> AsyncRequest:
        """Queue a prompt, as `Engine.add` does; to be called in the event loop.

        Raises:
            UserError: as `Engine.add`.
            QueueFullError: if `max_waiting` requests wait already.
            RuntimeError: outside of the context.
        """
        if self._stopping or not self._thread.is_alive():
            raise RuntimeError("the engine is not running: submit within `async with`")
        if self._coming + self.engine.stats().waiting >= self.max_waiting:
            raise QueueFullError(f"{self.max_waiting} requests are waiting already: try again later")
        request = AsyncRequest(self.engine.prepare(prompt, params, prefix=prefix), self)
        self._coming += 1
        self._tell(lambda: self._start(request))
        return request

    def _cancel(self, request: AsyncRequest) -> None:
        self._tell(lambda: self._publish(self.engine.cancel(request.request)))

    def _tell(self, job: Callable[[], Any]) -> None:
        self._inbox.append(job)
        self._wake.set()

    def _start(self, request: AsyncRequest) -> None:
        self._coming -= 1
        self._requests[request.request] = request
        self.engine.start(request.request)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.wait()
            self._wake.clear()
            while (self._inbox or self.engine.has_work) and not self._stopping:
                try:
                    self._read_inbox()
                    self._publish(self.engine.step())
                except Exception:  # a bug: better to end these requests than to let them wait for ever
                    logger.exception("the engine failed; all its requests are ended")
                    self._end_all()
        self._read_inbox()
        self._end_all()

    def _read_inbox(self) -> None:
        while self._inbox:
            self._inbox.popleft()()

    def _end_all(self) -> None:
        for request in list(self._requests):
            self._publish(self.engine.cancel(request))

    def _publish(self, emitted: Sequence[tuple[Request, Delta]]) -> None:
        """Hand pieces over to the event loop, all of a step at once."""
        deliveries = [(self._requests[request], delta) for request, delta in emitted]
        for request, _ in emitted:
            if request.finished:
                self._requests.pop(request, None)
        if deliveries:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to read
                self._loop.call_soon_threadsafe(_deliver, deliveries)


def _deliver(deliveries: Sequence[tuple[AsyncRequest, Delta]]) -> None:
    for request, delta in deliveries:
        request._deltas.put_nowait(delta)
