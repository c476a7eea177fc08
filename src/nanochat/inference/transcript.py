"""From tokens back to what a reader sees: text that is never cut inside a character, and the parts of an answer."""

import codecs
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from nanochat.common import UserError
from nanochat.data.conversations import Part
from nanochat.tokenizer import NanoChatTokenizer
from nanochat.tokenizer.byte_level import ranks_of

PartType = Literal["text", "python", "python_output"]
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Delta:
    """A piece of an answer as it comes.

    Attributes:
        type: What the piece belongs to: "text" is for the reader, "python" and "python_output" are the tool's.
        text: The new characters, always whole ones.
        part: Which part of the answer it continues, counted from 0.
        finish_reason: None but in the last piece: "stop" at a stop token, "length" where the limit of tokens or the
            end of the context was reached.
    """

    type: PartType
    text: str
    part: int
    finish_reason: FinishReason | None = None


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
    the tokenizer's `decode`.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._type: PartType = "text"
        self._part = 0
        self._call = ""

    def read(self, token: int) -> list[Delta]:
        """Return what `token` adds: nothing, a piece, or the waiting end of one part when the token begins another."""
        vocabulary = self._vocabulary
        match token:
            case vocabulary.python_start:
                return self._begin("python")
            case vocabulary.output_start:
                return self._begin("python_output")
            case vocabulary.python_end | vocabulary.output_end:
                return self._begin("text")
        return self._piece(vocabulary.bytes_of[token])

    def end(self, reason: FinishReason) -> Delta:
        """Return the last piece, with the bytes that still waited."""
        return Delta(self._type, self._decoder.decode(b"", final=True), self._part, reason)

    @property
    def open_call(self) -> str | None:
        """The expression of the call that is being written, or None outside of a call."""
        return self._call if self._type == "python" else None

    def _begin(self, type: PartType) -> list[Delta]:
        rest = self._piece(b"", final=True)
        self._decoder.reset()
        self._type, self._part, self._call = type, self._part + 1, ""
        return rest

    def _piece(self, data: bytes, final: bool = False) -> list[Delta]:
        text = self._decoder.decode(data, final)
        self._call += text if self._type == "python" else ""
        return [Delta(self._type, text, self._part)] if text else []
