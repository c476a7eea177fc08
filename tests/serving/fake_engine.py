"""An engine that says what a test wrote down, at the test's pace; it fails where the test says so.

It keeps the contract of `AsyncEngine` (deltas, tokens, cancelling at the next step, a bounded queue), and nothing of
how the real one works.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from scripted_model import byte_tokenizer

from nanochat.common import UserError
from nanochat.inference import Delta, QueueFullError, SamplingParams, Token
from nanochat.inference.transcript import Transcript, Vocabulary

TOKENIZER = byte_tokenizer()
VOCABULARY = Vocabulary(TOKENIZER)
END, PYTHON, PYTHON_END, OUTPUT, OUTPUT_END = 260, 261, 262, 263, 264
CALL = [PYTHON, *b"37*24", PYTHON_END, OUTPUT, *b"888", OUTPUT_END, *b"It is 888.", END]


def said(text: str) -> list[int]:
    """The tokens of a whole answer."""
    return [*text.encode(), END]


@dataclass
class FakeStats:
    running: int = 0
    waiting: int = 0


class FakeEngine:
    """What the server reads of `Engine`."""

    def __init__(self, context_length: int = 512) -> None:
        self.tokenizer = TOKENIZER
        self.context_length = context_length
        self.counts = FakeStats()

    def encode(self, prompt: Any) -> list[int]:
        if not prompt:
            raise UserError("the prompt is empty: give at least one character, message or token")
        if isinstance(prompt, str):
            return [VOCABULARY.bos, *TOKENIZER.encode_ordinary_batch([prompt])[0]]
        if isinstance(prompt[0], dict):
            return list(TOKENIZER.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"])
        if max(prompt) >= 265:
            raise UserError(f"the prompt has the token id {max(prompt)}, but the model's ids go from 0 to 264")
        return list(prompt)

    def stats(self) -> FakeStats:
        return self.counts


@dataclass
class FakeRequest:
    prompt_ids: list[int]
    params: SamplingParams
    prompt_tokens: int = 0
    cached_tokens: int = 3
    completion_tokens: int = 0
    finished: bool = False
    time_to_first_token: float | None = None
    decoding_seconds: float = 0.0
    error: str | None = None


class FakeAsyncEngine:
    """Answers everything with `answer`, or what `answers` has for the prompt's text, a token every `seconds`.

    `fail_at`: the place in the answer at which the engine breaks, once.
    """

    def __init__(
        self,
        answer: Sequence[int] = tuple(said("Hello!")),
        *,
        seconds: float = 0.0,
        capacity: int = 64,
        max_waiting: int = 256,
        fail_at: int | None = None,
        context_length: int = 512,
    ) -> None:
        self.engine = FakeEngine(context_length)
        self.answer = list(answer)
        self.seconds = seconds
        self.capacity = capacity
        self.max_waiting = max_waiting
        self.fail_at = fail_at
        self.submitted: list[FakeAsyncRequest] = []
        self.steps = 0

    def submit(self, prompt: list[int], params: SamplingParams, *, prefix: Sequence[int] = ()) -> "FakeAsyncRequest":
        if self.engine.counts.waiting >= self.max_waiting:
            raise QueueFullError(f"{self.max_waiting} requests wait already")
        request = FakeAsyncRequest(self, FakeRequest(prompt, params, len(prompt)), prefix)
        self.submitted.append(request)
        return request


@dataclass
class FakeAsyncRequest:
    engine: FakeAsyncEngine
    request: FakeRequest
    prefix: Sequence[int]
    cancelled: bool = False
    queue: "asyncio.Queue[Delta | None]" = field(default_factory=asyncio.Queue)

    def __post_init__(self) -> None:
        answer = self.engine.answer
        self.tokens = [*self.prefix, *answer[len(self.prefix) :]]
        self.runs = self._starts()
        self.engine.engine.counts.waiting += not self.runs
        self.task = asyncio.create_task(self._run())

    def cancel(self) -> None:
        self.cancelled = True

    async def __aiter__(self) -> AsyncIterator[Delta]:
        while (delta := await self.queue.get()) is not None:
            yield delta

    def _starts(self) -> bool:
        counts = self.engine.engine.counts
        free = counts.running < self.engine.capacity
        counts.running += free
        return free

    async def _run(self) -> None:
        counts = self.engine.engine.counts
        while not self.runs and not self.cancelled:
            await asyncio.sleep(0.001)
            if self._starts():
                self.runs = True
                counts.waiting -= 1
        try:
            for index in range(self.request.params.n):
                async for delta in self._sample(index):
                    self.queue.put_nowait(delta)
        finally:
            counts.running -= self.runs
            counts.waiting -= not self.runs
            self.request.finished = True
            self.queue.put_nowait(None)

    async def _sample(self, index: int) -> AsyncIterator[Delta]:
        engine, params = self.engine, self.request.params
        transcript = Transcript(VOCABULARY, params.stop, index)
        room = min(params.max_new_tokens, engine.engine.context_length - len(self.request.prompt_ids))
        tool_speaks = False
        for place, id in zip(range(room), itertools.chain(self.tokens, itertools.repeat(33))):
            await asyncio.sleep(engine.seconds)
            engine.steps += 1
            if self.cancelled or engine.fail_at == place:
                engine.fail_at = engine.fail_at if self.cancelled else None
                yield transcript.end("cancelled" if self.cancelled else "error")
                return
            self.request.completion_tokens += 1
            self.request.time_to_first_token = self.request.time_to_first_token or 0.01
            self.request.decoding_seconds = 0.1 * place
            tool_speaks = id == OUTPUT or (tool_speaks and self.tokens[place - 1] != OUTPUT_END)
            token = self._token(id, forced=tool_speaks or place < len(self.prefix))
            if id == END:
                yield transcript.end("stop", token)
                return
            for delta in transcript.read(token):
                yield delta
            if transcript.stopped:
                break
        yield transcript.end("length")

    def _token(self, id: int, forced: bool) -> Token:
        wanted = self.request.params.logprobs
        if wanted is None or forced:
            return Token(id, None, (), forced)
        likeliest = [(id, -0.5), (65, -1.5), (0xE2, -2.5), (END, -3.5), (66, float("-inf"))]
        return Token(id, -0.5, tuple(likeliest[:wanted]))
