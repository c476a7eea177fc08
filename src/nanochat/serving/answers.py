"""From the engine's deltas to OpenAI's answers, whole or as the events of a stream."""

import codecs
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from nanochat.inference import Delta, Token, join_deltas
from nanochat.inference.transcript import Vocabulary
from nanochat.serving.wire import (
    AnswerToken,
    ChatChoice,
    ChatChunkChoice,
    ChatLogprobs,
    Speed,
    TextChoice,
    TextLogprobs,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from nanochat.tokenizer import NanoChatTokenizer

_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False)

LEAST_LOGPROB = -9999.0  # OpenAI's stand-in for "next to impossible"; JSON has no infinity


class TokenTexts:
    """How each token is shown to clients."""

    def __init__(self, tokenizer: NanoChatTokenizer) -> None:
        self._bytes = Vocabulary(tokenizer).bytes_of
        self._names = {id: name for name, id in tokenizer.get_added_vocab().items()}

    def is_control(self, id: int) -> bool:
        """Whether it is a control token."""
        return id in self._names

    def bytes(self, id: int) -> bytes:
        """Return what it stands for; nothing for a control token."""
        return self._bytes[id] if id < len(self._bytes) else b""

    def text(self, id: int) -> str:
        """Return what it stands for as text, U+FFFD for a piece of a character; a control token's name."""
        return self._names.get(id) or self.bytes(id).decode("utf-8", "replace")

    def key(self, id: int) -> str:
        r"""Return its text where it is whole characters, else `bytes:\xe2\x82`; unlike `text` it tells tokens apart."""
        try:
            return self._names.get(id) or self.bytes(id).decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.bytes(id))


class Answer(ABC):
    """Writes the answers to one request, in the form of one endpoint.

    Args:
        model: The id of the model.
        texts: Of its tokens.
        logprobs: Whether the client wants log-probabilities.
        tokens: Whether it wants every token as it was generated.
        include_usage: Whether a stream ends with the usage.
    """

    prefix: str  # of the answers' ids
    whole_object: str
    chunk_object: str

    def __init__(self, model: str, texts: TokenTexts, *, logprobs: bool, tokens: bool, include_usage: bool) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._head = {"id": self.id, "created": int(time.time()), "model": model}
        self._texts = texts
        self._logprobs = logprobs
        self._tokens = tokens
        self._include_usage = include_usage

    @abstractmethod
    def choice(self, index: int, deltas: Sequence[Delta]) -> ChatChoice | TextChoice:
        """Return one whole answer."""

    @abstractmethod
    def piece(self, delta: Delta) -> ChatChunkChoice | TextChoice:
        """Return the next piece of one."""

    def whole(self, deltas: Iterable[Delta], usage: Usage, speed: Speed) -> dict[str, Any]:
        """Return the body of the response that is not streamed."""
        by_choice: dict[int, list[Delta]] = {}
        for delta in deltas:
            by_choice.setdefault(delta.index, []).append(delta)
        choices = [self.choice(index, by_choice[index]) for index in sorted(by_choice)]
        return {**self._head, "object": self.whole_object, "choices": choices, "usage": usage, "nanochat": speed}

    def events(self, deltas: Iterable[Delta], speed: Speed | None) -> bytes:
        """Return the events that bring these deltas, if they bring anything; the very last tells the speed."""
        chunks = [self._chunk([self.piece(delta)]) for delta in merged(deltas) if self._brings_news(delta)]
        if speed is not None:
            chunks[-1]["nanochat"] = speed
        return b"".join(map(event, chunks))

    def last_events(self, usage: Usage, speed: Speed) -> bytes:
        """Return the events that end the stream."""
        totals = event({**self._chunk([]), "usage": usage, "nanochat": speed}) if self._include_usage else b""
        return totals + b"data: [DONE]\n\n"

    def _brings_news(self, delta: Delta) -> bool:
        return bool(delta.text or delta.finish_reason or (delta.tokens and (self._tokens or self._logprobs)))

    def _chunk(self, choices: list[Any]) -> dict[str, Any]:
        chunk = {**self._head, "object": self.chunk_object, "choices": choices}
        return {**chunk, "usage": None} if self._include_usage else chunk

    def _answer_tokens(self, deltas: Iterable[Delta]) -> list[AnswerToken]:
        texts = self._texts
        return [
            {
                "id": token.id,
                "text": texts.text(token.id),
                "logprob": finite(token.logprob),
                "top": [{"id": id, "text": texts.text(id), "logprob": finite(value)} for id, value in token.top],
                "control": texts.is_control(token.id),
                "forced": token.forced,
                "type": delta.type,
                "part": delta.part,
            }
            for delta in deltas
            for token in delta.tokens
        ]

    def _text_tokens(self, deltas: Iterable[Delta]) -> list[Token]:
        """The tokens whose characters are the answer's text: control tokens and the tool's work are not among them."""
        written = (token for delta in deltas if delta.type == "text" for token in delta.tokens)
        return [token for token in written if not self._texts.is_control(token.id)]


class ChatAnswer(Answer):
    """For `/v1/chat/completions`."""

    prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begun: set[int] = set()

    def choice(self, index: int, deltas: Sequence[Delta]) -> ChatChoice:
        """Return one whole answer."""
        parts = join_deltas(deltas)
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        choice: dict[str, Any] = {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None, "parts": parts},
            "logprobs": self._chat_logprobs(deltas),
            "finish_reason": deltas[-1].finish_reason,
        }
        return choice | ({"tokens": self._answer_tokens(deltas)} if self._tokens else {})  # type: ignore[return-value]

    def piece(self, delta: Delta) -> ChatChunkChoice:
        """Return the next piece of one; the first says whose turn it is."""
        new: dict[str, Any] = {}
        if delta.index not in self._begun:
            self._begun.add(delta.index)
            new = {"role": "assistant", "content": ""}
        if delta.text:
            if delta.type == "text":
                new["content"] = delta.text
            new["part"] = {"index": delta.part, "type": delta.type, "text": delta.text}
        choice: dict[str, Any] = {
            "index": delta.index,
            "delta": new,
            "logprobs": self._chat_logprobs([delta]),
            "finish_reason": delta.finish_reason,
        }
        return choice | ({"tokens": self._answer_tokens([delta])} if self._tokens else {})  # type: ignore[return-value]

    def _chat_logprobs(self, deltas: Sequence[Delta]) -> ChatLogprobs | None:
        if not self._logprobs:
            return None
        content = [
            TokenLogprob(
                token=self._texts.text(token.id),
                logprob=finite(token.logprob),
                bytes=list(self._texts.bytes(token.id)),
                top_logprobs=[self._top_logprob(id, logprob) for id, logprob in token.top],
            )
            for token in self._text_tokens(deltas)
        ]
        return {"content": content, "refusal": None}

    def _top_logprob(self, id: int, logprob: float) -> TopLogprob:
        data = None if self._texts.is_control(id) else list(self._texts.bytes(id))
        return {"token": self._texts.text(id), "logprob": max(logprob, LEAST_LOGPROB), "bytes": data}


class TextAnswer(Answer):
    """For `/v1/completions`."""

    prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._offsets: dict[int, _Offset] = {}

    def choice(self, index: int, deltas: Sequence[Delta]) -> TextChoice:
        """Return one whole answer."""
        parts = join_deltas(deltas)
        choice: dict[str, Any] = {
            "index": index,
            "text": "".join(part["text"] for part in parts if part["type"] == "text"),
            "logprobs": self._text_logprobs(index, deltas),
            "finish_reason": deltas[-1].finish_reason,
            "parts": parts,
        }
        return choice | ({"tokens": self._answer_tokens(deltas)} if self._tokens else {})  # type: ignore[return-value]

    def piece(self, delta: Delta) -> TextChoice:
        """Return the next piece of one."""
        choice: dict[str, Any] = {
            "index": delta.index,
            "text": delta.text if delta.type == "text" else "",
            "logprobs": self._text_logprobs(delta.index, [delta]),
            "finish_reason": delta.finish_reason,
        }
        if delta.text:
            choice["part"] = {"index": delta.part, "type": delta.type, "text": delta.text}
        return choice | ({"tokens": self._answer_tokens([delta])} if self._tokens else {})  # type: ignore[return-value]

    def _text_logprobs(self, index: int, deltas: Sequence[Delta]) -> TextLogprobs | None:
        if not self._logprobs:
            return None
        tokens = self._text_tokens(deltas)
        offset = self._offsets.setdefault(index, _Offset())
        return {
            "tokens": [self._texts.key(token.id) for token in tokens],
            "token_logprobs": [finite(token.logprob) for token in tokens],
            "top_logprobs": [
                {self._texts.key(id): max(logprob, LEAST_LOGPROB) for id, logprob in token.top} for token in tokens
            ],
            "text_offset": [offset.take(self._texts.bytes(token.id)) for token in tokens],
        }


class _Offset:
    """Where in the text each token begins, in characters."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._characters = 0

    def take(self, data: bytes) -> int:
        """Return where the token with these bytes begins, and step over it."""
        start = self._characters
        self._characters += len(self._decoder.decode(data))
        return start


def merged(deltas: Iterable[Delta]) -> list[Delta]:
    """Join what follows each other in the same part of the same choice: fewer, longer events when many have come."""
    pieces: list[Delta] = []
    last: dict[int, int] = {}  # where the newest piece of each choice stands
    for delta in deltas:
        place = last.get(delta.index)
        if place is not None and (pieces[place].part, pieces[place].type) == (delta.part, delta.type):
            piece = pieces[place]
            pieces[place] = replace(delta, text=piece.text + delta.text, tokens=piece.tokens + delta.tokens)
        else:
            last[delta.index] = len(pieces)
            pieces.append(delta)
    return pieces


def event(data: Any) -> bytes:
    """Return a server-sent event."""
    return b"data: " + _encoder.encode(data).encode() + b"\n\n"


def finite(logprob: float | None) -> Any:
    """Return a log-probability as JSON can carry it."""
    return None if logprob is None else max(logprob, LEAST_LOGPROB)
