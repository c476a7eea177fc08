"""How answers reach the client, as server-sent events or whole; nothing is computed for a client that left."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from nanochat.inference import Delta
from nanochat.serving.answers import Answer, event
from nanochat.serving.errors import ApiError
from nanochat.serving.service import Generation

HEARTBEAT_SECONDS = 10.0  # silence after which a stream says that it lives; proxies give up after a minute
EVENTS_PER_SECOND = 2000  # of all streams together; beyond, several tokens share an event


class EventStream(Response):
    """Streams one request's answers.

    The status line waits for the first token (or heartbeat), so that errors until then have a status of their own.

    Args:
        generation: What comes; closed at the end.
        answer: How it is written.
        streams: Says how many streams are open.
        keep: Where all deltas are to be kept, if they are wanted later.
        on_end: Called when it is over, however it ended.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        generation: Generation,
        answer: Answer,
        streams: Callable[[], int],
        keep: list[Delta] | None,
        on_end: Callable[[], None],
    ) -> None:
        super().__init__(headers={"cache-control": "no-store", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._generation = generation
        self._answer = answer
        self._streams = streams
        self._keep = keep
        self._on_end = on_end
        self._began = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as ASGI wants it."""
        with _ended_with_client(self._generation, receive):
            try:
                await self._stream(send)
            except ApiError as error:
                if self._generation.ending == "client_gone":
                    return
                if not self._began:
                    await error.response()(scope, receive, send)
                    return
                await self._send(send, event(error.body), last=True)
            finally:
                self._on_end()

    async def _stream(self, send: Send) -> None:
        generation, answer = self._generation, self._answer
        while not generation.finished:
            deltas = await generation.next(HEARTBEAT_SECONDS)
            if not deltas:
                await self._send(send, b": still here\n\n")
                continue
            if self._keep is not None:
                self._keep += deltas
            await self._send(send, answer.events(deltas, generation.speed() if generation.finished else None))
            if not generation.finished:  # what comes meanwhile goes out together
                await asyncio.sleep(self._streams() / EVENTS_PER_SECOND)
        await self._send(send, answer.last_events(generation.usage(), generation.speed()), last=True)

    async def _send(self, send: Send, body: bytes, last: bool = False) -> None:
        if not self._began:
            self._began = True
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": body, "more_body": not last})


async def collect(generation: Generation, receive: Receive, into: list[Delta]) -> None:
    """Gather all deltas.

    Raises:
        ApiError: as `Generation.next` does; 499 where nobody is there any more to read it.
    """
    with _ended_with_client(generation, receive):
        while not generation.finished:
            try:
                into += await generation.next()
            except ApiError:
                if generation.ending == "client_gone":
                    raise ApiError(499, "the client left") from None
                raise


@contextlib.contextmanager
def _ended_with_client(generation: Generation, receive: Receive) -> Iterator[None]:
    """Stop the generation as soon as the client leaves, and close it at the end of the block."""
    watcher = asyncio.create_task(_watch(generation, receive))
    try:
        yield
    finally:
        watcher.cancel()
        generation.close()


async def _watch(generation: Generation, receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    generation.end("client_gone")
