"""A request from its prompt to its last token: what was asked, and the answers (samples) that grow from it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nanochat.data.conversations import Part
from nanochat.inference.sampling import SamplingParams
from nanochat.inference.transcript import Delta, FinishReason, Token, Transcript, Vocabulary, join_deltas

DRAFT_MATCH = 3  # so many last tokens must have occurred before for a draft
DRAFT_TOKENS = 5  # with the token before them they fill the six rows that the native decoder multiplies at once
FIRST_DRAFT = 2  # tokens of the first draft: all after one that was right, half as many after a wrong one


@dataclass(frozen=True)
class Result:
    """One answer.

    Attributes:
        token_ids: Every token after the prompt: the results of tools and the stop token are among them.
        text: What the reader sees; calls of the calculator and their results are left out.
        parts: The assistant message's content, to be put back into the conversation.
        finish_reason: "stop" at a stop token or string; "length" at `max_new_tokens` or the end of the context;
            "cancelled"; "error" if the engine could not go on.
        tokens: The tokens with their probabilities, where `SamplingParams.logprobs` asked for them.
        prompt_tokens: Length of the prompt.
        cached_tokens: How many of those were known from earlier requests and not computed again.
    """

    token_ids: list[int]
    text: str
    parts: list[Part]
    finish_reason: FinishReason
    tokens: list[Token]
    prompt_tokens: int
    cached_tokens: int

    @property
    def logprobs(self) -> list[float | None]:
        """Natural log of each token's probability; None where not asked for, or not the model's choice."""
        return [token.logprob for token in self.tokens]


class Request:
    """A prompt that the engine answers `params.n` times.

    Attributes:
        prompt_ids: The prompt's tokens.
        params: How it is to be answered.
        samples: Its answers, growing.
        cached_tokens: How many of the prompt's tokens needed no computation.
        time_to_first_token: Seconds from `Engine.add` to the first token that the model chose; None before.
        decoding_seconds: Seconds from that token to the newest one.
        error: What went wrong, if the engine could not finish it.
    """

    def __init__(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        vocabulary: Vocabulary,
        context_length: int,
        prefix: Sequence[int] = (),
    ) -> None:
        self.prompt_ids = prompt_ids
        self.params = params
        self.prefix = list(prefix)
        self.cached_tokens = 0
        self.time_to_first_token: float | None = None
        self.decoding_seconds = 0.0
        self.error: str | None = None
        self.prompt_computed = False  # by the first sample: the others take it from the cache
        self._added = time.perf_counter()
        self.samples = [Sample(self, index, vocabulary, context_length) for index in range(params.n)]

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt, in tokens."""
        return len(self.prompt_ids)

    @property
    def completion_tokens(self) -> int:
        """Length of all answers so far, in tokens."""
        return sum(sample.answer_length for sample in self.samples)

    @property
    def finished(self) -> bool:
        """Whether all answers have come to an end."""
        return all(sample.finish_reason for sample in self.samples)

    def token_chosen(self) -> None:
        """Take the time of a token."""
        seconds = time.perf_counter() - self._added
        if self.time_to_first_token is None:
            self.time_to_first_token = seconds
        self.decoding_seconds = seconds - self.time_to_first_token

    def results(self) -> list[Result]:
        """The answers as they are now."""
        return [sample.result() for sample in self.samples]


class Sample:
    """One answer of a request while it grows.

    Attributes:
        tokens: Prompt and answer.
        computed: How many of them have their keys and values in the cache, or will when the step that runs is done.
        ahead: How many tokens after them are chosen on the device, and not known here yet.
        place: Where on the device the last of these is.
        pages: The cache's pages that hold these.
    """

    def __init__(self, request: Request, index: int, vocabulary: Vocabulary, context_length: int) -> None:
        params = request.params
        self.request = request
        self.params = params
        self.index = index
        self.tokens = list(request.prompt_ids)
        self.computed = self.ahead = self.place = 0
        self.pages: list[int] = []
        self.registered = 0  # pages that the cache knows by their tokens
        self.chain = 0  # the cache's name for the last of these
        self.drafts: list[int] = []  # guesses at the next tokens, computed along with the last one
        self.finish_reason: FinishReason | None = None
        self.deltas: list[Delta] = []
        self.transcript = Transcript(vocabulary, params.stop, index)
        self._generator = _generator(params.seed, index)
        self.room = min(params.max_new_tokens + len(request.prefix), context_length - len(request.prompt_ids))
        end_of_turn = vocabulary.assistant_end, vocabulary.bos
        self.stops = frozenset(end_of_turn if params.stop_token_ids is None else params.stop_token_ids)
        self.adjusts_logits = bool(
            params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty or params.logit_bias
        )
        self.needs_logits = self.adjusts_logits or params.logprobs is not None
        self._draft_length = FIRST_DRAFT
        self._follows: dict[tuple[int, ...], int] = {}  # after which tokens, where
        self._looked_up = 0
        self._draw = 0.0
        self._spare_draw: float | None = None  # given back

    @property
    def length(self) -> int:
        """How many tokens there are, those not known yet counted."""
        return len(self.tokens) + self.ahead

    @property
    def full(self) -> bool:
        """Whether a token not known yet is its last, whatever it is."""
        return self.ahead > 0 and self.answer_length + self.ahead >= self.room

    @property
    def answer(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[len(self.request.prompt_ids) :]

    @property
    def answer_length(self) -> int:
        """How many these are."""
        return len(self.tokens) - len(self.request.prompt_ids)

    @property
    def in_prompt(self) -> bool:
        """Whether more than the newest token is still to be computed."""
        return self.computed < self.length - 1

    def draw(self) -> float:
        """The next draw from [0, 1) of the sample's own generator."""
        if self._spare_draw is None:
            self._draw = torch.rand((), generator=self._generator, dtype=torch.float64).item()
        self._spare_draw = None
        return self._draw

    def drop_choice(self) -> None:
        """The token that is being chosen on the device isn't wanted: another one will take its draw."""
        self.ahead, self._spare_draw = 0, self._draw

    def draft(self) -> list[int]:
        """Guess the next tokens: what followed the last few where they occurred before (prompt lookup decoding)."""
        tokens = self.tokens
        room = self.room - self.answer_length - 1
        if not self._draft_length or room < 1:
            return []
        for follows in range(max(DRAFT_MATCH, self._looked_up), len(tokens)):
            self._follows[tuple(tokens[follows - DRAFT_MATCH : follows])] = follows
        self._looked_up = len(tokens)
        follows = self._follows.get(tuple(tokens[-DRAFT_MATCH:]), len(tokens))
        return tokens[follows : follows + min(self._draft_length, room)]

    def drafted(self, right: int, guesses: int) -> None:
        """Learn how good drafts are here."""
        if right == guesses:
            self._draft_length = DRAFT_TOKENS
        elif right == 0:
            self._draft_length //= 2

    def emit(self, deltas: list[Delta]) -> list[Delta]:
        """Keep pieces of the answer, and note its end."""
        self.deltas += deltas
        if deltas and deltas[-1].finish_reason:
            self.finish_reason = deltas[-1].finish_reason
        return deltas

    def result(self) -> Result:
        """The answer as it is now."""
        parts = join_deltas(self.deltas)
        return Result(
            token_ids=self.answer,
            text="".join(part["text"] for part in parts if part["type"] == "text"),
            parts=parts,
            finish_reason=self.finish_reason or "length",
            tokens=[token for delta in self.deltas for token in delta.tokens],
            prompt_tokens=self.request.prompt_tokens,
            cached_tokens=self.request.cached_tokens,
        )


def _generator(seed: int | None, index: int) -> torch.Generator:
    """A source of draws for one sample; on the CPU, so that a seed means the same on every device."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed((seed + index * 0x9E3779B97F4A7C15) % 2**63)
    return generator
