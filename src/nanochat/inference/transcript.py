"""From tokens back to what a reader sees: text that is never cut inside a character, and the parts of an answer."""

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from nanochat.common import UserError
from nanochat.data.conversations import Part
from nanochat.tokenizer import NanoChatTokenizer
from nanochat.tokenizer.byte_level import ranks_of

PartType = Literal["text", "python", "python_output"]
FinishReason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Token:
    """One token of an answer.

    Attributes:
        id: In the vocabulary.
        logprob: Natural log of the probability that the model itself gave it: before temperature, penalties and bias.
            None where it wasn't asked for, or the token is not the model's choice.
        top: The likeliest tokens at its place, as (id, logprob).
        forced: Written by the engine, not chosen by the model: a tool's result, or the given beginning of an answer.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    forced: bool = False


@dataclass(frozen=True)
class Delta:
    """A piece of an answer as it comes.

    Attributes:
        type: What the piece belongs to: "text" is for the reader, "python" and "python_output" are the tool's.
        text: The new characters, always whole ones; "" where the tokens add none yet, or none at all.
        part: Which part of the answer it continues, counted from 0.
        finish_reason: None but in the last piece: "stop" at a stop token or string, "length" where the limit of
            tokens or the end of the context was reached, "cancelled", or "error".
        tokens: The tokens that came with it. All pieces together have every token of the answer once.
        index: Which of a prompt's answers it belongs to.
    """

    type: PartType
    text: str
    part: int
    finish_reason: FinishReason | None = None
    tokens: tuple[Token, ...] = ()
    index: int = 0


def join_deltas(deltas: Iterable[Delta]) -> list[Part]:
    """Return the content of the assistant message that the pieces make: parts in order, none of them empty.

    It can be put back into a conversation as it is; an answer that says nothing is one empty text.
    """
    texts: dict[tuple[int, PartType], str] = {}
    for delta in deltas:
        key = delta.part, delta.type
        texts[key] = texts.get(key, "") + delta.text
    return [Part(type=type, text=text) for (_, type), text in texts.items() if text] or [Part(type="text", text="")]


class Vocabulary:
    """What the engine must know of a tokenizer: the ids of the control tokens, and the bytes of all others."""

    def __init__(self, tokenizer: NanoChatTokenizer) -> None:
        specials = tokenizer.get_added_vocab()

        def id_of(token: str) -> int:
            if token not in specials:
                raise UserError(f"the tokenizer has no token {token}: it is not NanoChat's")
            return specials[token]

        self.bos, self.assistant_end = id_of("<|bos|>"), id_of("<|assistant_end|>")
        self.python_start, self.python_end = id_of("<|python_start|>"), id_of("<|python_end|>")
        self.output_start, self.output_end = id_of("<|output_start|>"), id_of("<|output_end|>")
        # The engine alone writes these. A model that could would forge a tool's result or the user's words.
        others_turn = [id_of("<|user_start|>"), id_of("<|user_end|>"), id_of("<|assistant_start|>")]
        self.reserved = [*others_turn, self.output_start, self.output_end]
        self.bytes_of = [b""] * len(tokenizer)  # by id; control tokens have none
        for token, id in ranks_of(tokenizer.backend_tokenizer).items():
            self.bytes_of[id] = token


class Transcript:
    """Reads the tokens of one answer, one by one, and says what each adds for the reader.

    Bytes that don't make a whole character yet wait for the next token; bytes that never will become U+FFFD, as in
    the tokenizer's `decode`. In the text for the reader the first occurrence of a stop string ends the answer; what
    may be the beginning of one waits too.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str] = (), index: int = 0) -> None:
        self._vocabulary = vocabulary
        self._stop = stop
        self._index = index
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._type: PartType = "text"
        self._part = 0
        self._call = ""
        self._held = ""  # the beginning of a stop string, perhaps
        self.stopped = False  # by a stop string

    def read(self, token: Token) -> list[Delta]:
        """Return what a token adds: a piece, and before it the waiting end of a part that the token closes."""
        vocabulary = self._vocabulary
        match token.id:
            case vocabulary.python_start:
                return self._begin("python", token)
            case vocabulary.output_start:
                return self._begin("python_output", token)
            case vocabulary.python_end | vocabulary.output_end:
                return self._begin("text", token)
        known = token.id < len(vocabulary.bytes_of)
        return [self._delta(self._grown(vocabulary.bytes_of[token.id] if known else b""), (token,))]

    def end(self, reason: FinishReason, *tokens: Token) -> Delta:
        """Return the last piece: what still waited, and perhaps a stop token."""
        text = "" if self.stopped else self._grown(b"", final=True)
        return self._delta(text, tokens, "stop" if self.stopped else reason)

    @property
    def open_call(self) -> str | None:
        """The expression of the call that is being written, or None outside of a call."""
        return self._call if self._type == "python" else None

    def _begin(self, type: PartType, token: Token) -> list[Delta]:
        rest = self._grown(b"", final=True)
        before = [self._delta(rest)] if rest else []
        self._decoder.reset()
        self._type, self._part, self._call = type, self._part + 1, ""
        return [*before, self._delta("", (token,))]

    def _delta(self, text: str, tokens: tuple[Token, ...] = (), reason: FinishReason | None = None) -> Delta:
        return Delta(self._type, text, self._part, reason, tokens, self._index)

    def _grown(self, data: bytes, final: bool = False) -> str:
        text = self._decoder.decode(data, final)
        if self._type == "python":
            self._call += text
        if self._type != "text" or not self._stop:
            return text
        text = self._held + text
        ends = [at for at in map(text.find, self._stop) if at >= 0]
        if ends:
            self.stopped = True
            return text[: min(ends)]
        waiting = 0 if final else max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - waiting :]
        return text[: len(text) - waiting]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    most = min(len(text), len(stop) - 1)
    return next((length for length in range(most, 0, -1) if text.endswith(stop[:length])), 0)
