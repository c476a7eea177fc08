"""Between the HTTP routes and the engine: who gets in, how long an answer may take, and how each one ends."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from nanochat.common import UserError
from nanochat.data.conversations import Conversation
from nanochat.inference import AsyncEngine, AsyncRequest, Delta, QueueFullError, SamplingParams
from nanochat.serving.answers import TokenTexts
from nanochat.serving.errors import ApiError
from nanochat.serving.metrics import Metrics
from nanochat.serving.wire import Speed, Usage

Ending = Literal["client_gone", "time_limit", "shutdown"]

RETRY_SECONDS = 2  # what a client that comes at a full house is told to wait
LAST_WORDS_SECONDS = 5.0  # for telling clients that their answers were cut off
MAX_BEING_READ = 256  # answers beside those that wait: running, or finished but not yet read by a slow client


@dataclass(frozen=True)
class Settings:
    """How a server serves.

    Attributes:
        model: The id under which clients know the model.
        api_key: What clients must present; None: nothing.
        allowed_hosts: Host names beside localhost by which clients may address the server; IP addresses always may.
        allowed_origins: Web pages of other origins, like `https://example.org`, that may use the API.
        max_body: The longest request body, in bytes.
        max_waiting: The most requests that wait for the engine.
        time_limit: The most seconds that an answer may take; what there is by then is the answer.
        drain_seconds: How long a server that is told to stop lets answers go on.
        log_content: Whether prompts and answers are logged.
    """

    model: str
    api_key: str | None = None
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_body: int = 2**20
    max_waiting: int = 256
    time_limit: float = 600.0
    drain_seconds: float = 30.0
    log_content: bool = False


class Service:
    """One model being served: the running engine, and every answer under way."""

    def __init__(self, running: AsyncEngine, settings: Settings) -> None:
        self.running = running
        self.engine = running.engine
        self.settings = settings
        self.texts = TokenTexts(self.engine.tokenizer)
        self.metrics = Metrics()
        self.started = int(time.time())
        self.draining = False
        self.under_way: set[Generation] = set()
        self._opening = 0  # answers let in that are still being tokenized

    async def encode(self, prompt: str | list[int] | Conversation, param: str, more: int = 0) -> list[int]:
        """Return a prompt's token ids; `param` is what an error blames, `more` how many other tokens must fit too.

        Raises:
            ApiError: 400 for what is no prompt, or leaves no room for an answer.
        """
        try:
            # In a thread: a long text takes a while, and the other clients' streams go on meanwhile.
            ids = await asyncio.to_thread(self.engine.encode, prompt)
        except UserError as error:
            raise ApiError(400, str(error), param=param, code="invalid_value") from error
        length, context = len(ids) + more, self.engine.context_length
        if length >= context:
            raise ApiError(
                400,
                f"the prompt has {length} tokens, but the model's context is {context} and the answer needs room too: "
                "shorten it",
                param=param,
                code="context_length_exceeded",
            )
        return ids

    async def start(
        self,
        prompts: Sequence[str | list[int] | Conversation],
        params: Callable[[int], SamplingParams],
        prefix: Sequence[int],
        param: str,
    ) -> "Generation":
        """Let the engine answer `prompts`; `params` gets the length of the context.

        Raises:
            ApiError: 400 for prompts or parameters that don't do, 429 when too many wait already, 503 when the
                server is about to stop.
        """
        self._let_in()
        self._opening += 1
        try:
            rows = [await self.encode(prompt, param, len(prefix)) for prompt in prompts]
            requests: list[AsyncRequest] = []
            try:
                sampling = params(self.engine.context_length)
                for ids in rows:
                    requests.append(self.running.submit(ids, sampling, prefix=tuple(prefix)))
            except QueueFullError as error:
                _cancel(requests)
                raise _full() from error
            except UserError as error:
                _cancel(requests)
                raise ApiError(400, str(error), code="invalid_value") from error
            generation = Generation(requests, sampling.n, self.settings.time_limit, self._closed)
            self.under_way.add(generation)
            return generation
        finally:
            self._opening -= 1

    async def drain(self) -> None:
        """Refuse new requests and return when no answer is under way any more, cutting off what takes too long."""
        self.draining = True
        deadline = time.monotonic() + self.settings.drain_seconds
        while (self.under_way or self._opening) and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for generation in list(self.under_way):
            generation.end("shutdown")
        while self.under_way and time.monotonic() < deadline + LAST_WORDS_SECONDS:
            await asyncio.sleep(0.05)

    def _let_in(self) -> None:
        if self.draining:
            raise ApiError(503, "the server is about to stop", code="shutting_down", retry_after=RETRY_SECONDS)
        if len(self.under_way) + self._opening >= self.settings.max_waiting + MAX_BEING_READ:
            raise _full()

    def _closed(self, generation: "Generation") -> None:
        self.under_way.discard(generation)
        self.metrics.observe(generation.usage(), generation.speed())


class Generation:
    """The answers to one HTTP request, as they come. Must be closed.

    Args:
        requests: What the engine was asked, a prompt each.
        n: Answers to each prompt.
        time_limit: In seconds.
        on_close: Called once, when it is over.
    """

    def __init__(
        self, requests: Sequence[AsyncRequest], n: int, time_limit: float, on_close: Callable[["Generation"], None]
    ) -> None:
        self.ending: Ending | None = None  # why it ended early
        self._requests = requests
        self._n = n
        self._unfinished = len(requests) * n
        self._on_close: Callable[[Generation], None] | None = on_close
        self._failure: ApiError | None = None
        self._pending: list[Delta] = []
        self._news = asyncio.Event()
        self._has_begun = False  # whether a token has come
        self._timer = asyncio.get_running_loop().call_later(time_limit, self.end, "time_limit")
        self._pumps = [asyncio.create_task(self._pump(number, request)) for number, request in enumerate(requests)]

    @property
    def finished(self) -> bool:
        """Whether every answer has ended and nothing waits to be taken."""
        return not self._unfinished and not self._pending

    async def next(self, patience: float | None = None) -> list[Delta]:
        """Return all that has come, `index` counted over all prompts; nothing after `patience` seconds without news.

        Raises:
            ApiError: there will be no (rest of the) answer: the engine failed, the server stops, or the time was over
                before the first token.
        """
        if not self._pending and self._unfinished and self._failure is None:
            # The event is set without news when patience ends: half the cost of asyncio.timeout, for every token.
            timer = asyncio.get_running_loop().call_later(patience, self._news.set) if patience else None
            await self._news.wait()
            if timer is not None:
                timer.cancel()
        self._news.clear()
        if self._failure is not None:
            raise self._failure
        deltas, self._pending = self._pending, []
        return deltas

    def end(self, ending: Ending) -> None:
        """Have the engine stop at its next step."""
        if self.ending is None and self._unfinished:
            self.ending = ending
            _cancel(self._requests)

    def close(self) -> None:
        """Give everything back; stops what still runs."""
        if self._on_close is not None:
            on_close, self._on_close = self._on_close, None
            self._timer.cancel()
            if self._unfinished:
                _cancel(self._requests)
            for pump in self._pumps:
                pump.cancel()
            on_close(self)

    def usage(self) -> Usage:
        """Return the tokens so far."""
        prompt = sum(request.request.prompt_tokens for request in self._requests)
        completion = sum(request.request.completion_tokens for request in self._requests)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {
                "cached_tokens": sum(request.request.cached_tokens for request in self._requests)
            },
        }

    def speed(self) -> Speed:
        """Return how fast the tokens came so far."""
        # As the engine measures it: what waits for the event loop arrives all at once.
        times = [
            (first, first + request.request.decoding_seconds)
            for request in self._requests
            if (first := request.request.time_to_first_token) is not None
        ]
        begin, end = min((first for first, _ in times), default=None), max((last for _, last in times), default=0.0)
        usage = self.usage()
        seconds = end - begin if begin is not None else 0.0
        later = usage["completion_tokens"] - self._n * len(self._requests)
        return {
            "prompt_tokens": usage["prompt_tokens"],
            "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
            "time_to_first_token": round(begin, 6) if begin is not None else None,
            "tokens_per_second": round(later / seconds, 3) if seconds > 0 and later > 0 else None,
        }

    async def _pump(self, number: int, request: AsyncRequest) -> None:
        try:
            async for delta in request:
                self._take(replace(delta, index=number * self._n + delta.index) if number else delta)
        except Exception as error:
            self._fail(error)

    def _take(self, delta: Delta) -> None:
        self._has_begun = self._has_begun or bool(delta.tokens)
        match delta.finish_reason:
            case "error":
                self._fail(None)
            case "cancelled":
                self._unfinished -= 1
                self._cut_off(delta)
            case reason:
                self._unfinished -= reason is not None
                self._pending.append(delta)
        self._news.set()

    def _cut_off(self, delta: Delta) -> None:
        if self.ending == "time_limit" and self._has_begun:
            self._pending.append(replace(delta, finish_reason="length"))
        elif self.ending == "time_limit":
            self._failure = ApiError(
                503, "the server was too busy to begin in time", code="time_limit", retry_after=RETRY_SECONDS
            )
        elif self.ending is None:  # not by us: the engine gave up
            self._fail(None)
        else:
            self._failure = ApiError(503, "the server stopped before the answer was complete", code="shutting_down")

    def _fail(self, error: Exception | None) -> None:
        self._failure = ApiError(500, "the engine failed while it was answering: try again", code="engine_error")
        self._failure.__cause__ = error
        self._news.set()
        _cancel(self._requests)


def _full() -> ApiError:
    return ApiError(
        429,
        f"too many requests are waiting: try again in {RETRY_SECONDS} s",
        code="queue_full",
        retry_after=RETRY_SECONDS,
    )


def _cancel(requests: Sequence[AsyncRequest]) -> None:
    for request in requests:
        request.cancel()
