"""The engine: from prompts to answers, many at once, with a key/value cache and the calculator in the loop."""

import contextlib
import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Cache, PreTrainedModel

from nanochat.checkpoints.folder import load_model
from nanochat.common import UserError
from nanochat.data.conversations import Conversation, Part
from nanochat.inference.cache import RoomyLayer
from nanochat.inference.calculator import calculate
from nanochat.inference.sampling import SamplingParams, sample
from nanochat.inference.transcript import Delta, FinishReason, Transcript, Vocabulary, join_deltas
from nanochat.tokenizer import NanoChatTokenizer

Prompt = str | Sequence[int] | Conversation

MAX_ROWS = 64  # decoded together; more prompts wait their turn


@dataclass(frozen=True)
class Result:
    """One answer.

    Attributes:
        token_ids: Every token after the prompt: the results of tools and the stop token are among them.
        text: What the reader sees; calls of the calculator and their results are left out.
        parts: The assistant message's content, to be put back into the conversation.
        finish_reason: "stop" at a stop token; "length" at `max_new_tokens` or the end of the context.
    """

    token_ids: list[int]
    text: str
    parts: list[Part]
    finish_reason: FinishReason


class Engine:
    """Generates with a model and its tokenizer, on the model's device and in its dtype.

    A prompt is a string (plain text: `<|bos|>` is put before it and control tokens in it are ordinary characters), a
    conversation (`[{"role": "user", "content": "Hi"}]`; the assistant's turn is opened) or a list of token ids (taken
    as they are). Where the model calls the calculator (`<|python_start|>…<|python_end|>`), the engine computes the
    expression and writes the result into the answer; if it can't be computed, the model goes on alone. The model
    itself can't write tool results or anybody else's turn: those tokens are never chosen.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: NanoChatTokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.context_length: int = model.config.max_position_embeddings  # tokens of prompt and answer together
        self._vocabulary = Vocabulary(tokenizer)
        size = model.config.vocab_size
        if size < len(tokenizer):
            raise UserError(
                f"the tokenizer has {len(tokenizer)} tokens but the model only {size}: they don't belong together"
            )
        forbidden = torch.zeros(size, dtype=torch.bool)
        forbidden[self._vocabulary.reserved] = True
        forbidden[len(tokenizer) :] = True  # rows of a padded embedding stand for no text
        self._forbidden = forbidden.to(model.device)

    @classmethod
    def from_pretrained(cls, source: str | Path) -> "Engine":
        """Load model and tokenizer from a folder or the hub; on the GPU if there is one.

        Raises:
            UserError: if there is no such folder or id, or no whole model in it.
        """
        model, tokenizer = load_model(source)
        device: Any = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.to(device), tokenizer)

    def generate(
        self, prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Result]:
        """Answer every prompt; the results are in the order of the prompts.

        `params` is one for all or one each; with one for all and a seed in it, equal prompts get equal answers.

        Raises:
            UserError: before anything is generated, for a prompt that is empty, fills the context, has ids outside
                the vocabulary or is of no known kind.
        """
        if isinstance(prompts, str):
            raise UserError("generate takes a list of prompts: write generate([prompt])")
        if not isinstance(params, SamplingParams | Sequence | None):
            raise UserError(f"params must be SamplingParams, or a list of them, got {params!r:.80}")
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else params
        if len(each) != len(prompts):
            raise UserError(f"got {len(prompts)} prompts but {len(each)} SamplingParams: one for all, or one each")
        rows = [self._row(prompt, its, f"prompt {n}") for n, (prompt, its) in enumerate(zip(prompts, each))]
        # Rows of like length together pad least; the longest first, so that lack of memory shows at once.
        waiting = sorted(rows, key=lambda row: len(row.prompt), reverse=True)
        for start in range(0, len(waiting), MAX_ROWS):
            for row, delta in self._decode(waiting[start : start + MAX_ROWS]):
                row.deltas.append(delta)
        return [row.result() for row in rows]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Delta]:
        """Return an iterator over the pieces of the answer to one prompt, as they come.

        `join_deltas` makes message content of them. To stop early, stop iterating.

        Raises:
            UserError: at once, as in `generate`.
        """
        row = self._row(prompt, params or SamplingParams(), "the prompt")
        return (delta for _, delta in self._decode([row]))

    def encode(self, prompt: Prompt, name: str = "the prompt") -> list[int]:
        """Return the token ids of a prompt. Raises UserError, with `name` in it, if it is not one."""
        size = self.model.config.vocab_size
        kinds = f"{name} must be a string, a conversation or a list of token ids"
        if not isinstance(prompt, Sequence):
            raise UserError(f"{kinds}, got {type(prompt).__name__}")
        if not prompt:
            raise UserError(f"{name} is empty: give at least one character, message or token ([bos_token_id] will do)")
        try:
            if isinstance(prompt, str):
                return [self._vocabulary.bos, *self.tokenizer.encode_ordinary_batch([prompt])[0]]
            if all(isinstance(item, dict) for item in prompt):
                return self.tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        ids: list[int] = []
        for id in prompt:
            if not isinstance(id, int) or isinstance(id, bool):
                raise UserError(f"{kinds}, but has {id!r} in it")
            if not 0 <= id < size:
                raise UserError(f"{name} has the token id {id}, but the model's ids go from 0 to {size - 1}")
            ids.append(id)
        return ids

    def _row(self, prompt: Prompt, params: SamplingParams, name: str) -> "_Row":
        ids = self.encode(prompt, name)
        if len(ids) >= self.context_length:
            raise UserError(
                f"{name} has {len(ids)} tokens, but the model's context is {self.context_length} and the answer needs "
                "room too: shorten it"
            )
        return _Row(ids, params, self._vocabulary, self.tokenizer, self.context_length)

    def _decode(self, rows: list["_Row"]) -> Iterator[tuple["_Row", Delta]]:
        """Run rows together to their ends, one token each per step; finished rows leave the batch."""
        longest = max(len(row.prompt) for row in rows)
        # Left-padding, so that every row's newest token is in the last column. What the pads hold is masked.
        padded = [[0] * (longest - len(row.prompt)) + row.prompt for row in rows]
        tokens = torch.tensor(padded, device=self.model.device)
        cache = Cache(layer_class_to_replicate=RoomyLayer)
        while True:
            logits = self._forward(tokens, [longest - len(row.prompt) for row in rows], cache)
            choices = sample(logits, [row.params for row in rows], [row.generator for row in rows]).tolist()
            for row, choice in zip(rows, choices):
                for delta in row.accept(choice):
                    yield row, delta
            going = [n for n, row in enumerate(rows) if not row.finished]
            if not going:
                return
            if len(going) < len(rows):
                rows = [rows[n] for n in going]
                cache.batch_select_indices(torch.tensor(going, device=self.model.device))
            tokens = torch.tensor([[row.token_ids[-1]] for row in rows], device=self.model.device)

    @torch.inference_mode()
    def _forward(self, tokens: torch.Tensor, pads: list[int], cache: Cache) -> torch.Tensor:
        """Run (B, T) new tokens behind what is in the cache; return the last column's logits, (B, V) fp32.

        `pads` says how many of each row's columns, from the left, hold nothing.
        """
        start = cache.get_seq_length()
        columns = torch.arange(start + tokens.shape[1], device=tokens.device)
        empty = torch.tensor(pads, device=tokens.device)[:, None]
        with _evaluating(self.model):
            logits = self.model(
                input_ids=tokens,
                # Without pads no mask is needed, and attention without one is faster.
                attention_mask=(columns >= empty).long() if any(pads) else None,
                position_ids=(columns[start:] - empty).clamp(min=0),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
        return logits.float().masked_fill(self._forbidden, -math.inf)


@contextlib.contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Hold the model in evaluation mode and give it back as it was: training asks questions of its own model."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


class _Row:
    """One request while it is decoded: what it was asked, what it has said, what the engine has it say next."""

    def __init__(
        self,
        prompt: list[int],
        params: SamplingParams,
        vocabulary: Vocabulary,
        tokenizer: NanoChatTokenizer,
        context_length: int,
    ) -> None:
        self.prompt = prompt
        self.params = params
        self.generator = params.generator()
        self.token_ids: list[int] = []
        self.deltas: list[Delta] = []
        self.finished = False
        self._forced: deque[int] = deque()  # tokens of a tool's result, still to be written
        self._room = min(params.max_new_tokens, context_length - len(prompt))
        end_of_turn = vocabulary.assistant_end, vocabulary.bos
        self._stops = end_of_turn if params.stop_token_ids is None else params.stop_token_ids
        self._transcript = Transcript(vocabulary)
        self._vocabulary = vocabulary
        self._tokenizer = tokenizer

    def accept(self, choice: int) -> Iterator[Delta]:
        """Take the sampled token, or the next one of a tool's result in its place; yield what it adds."""
        token = self._forced.popleft() if self._forced else choice
        self.token_ids.append(token)
        if token in self._stops:
            yield self._finish("stop")
            return
        call = self._transcript.open_call
        yield from self._transcript.read(token)
        if token == self._vocabulary.python_end and call is not None:
            self._answer(call)
        if len(self.token_ids) == self._room:
            yield self._finish("length")

    def result(self) -> Result:
        parts = join_deltas(self.deltas)
        text = "".join(part["text"] for part in parts if part["type"] == "text")
        return Result(self.token_ids, text, parts, self.deltas[-1].finish_reason or "length")

    def _answer(self, call: str) -> None:
        value = calculate(call)
        if value is not None:
            ids = self._tokenizer.encode_ordinary_batch([value])[0]
            self._forced.extend([self._vocabulary.output_start, *ids, self._vocabulary.output_end])

    def _finish(self, reason: FinishReason) -> Delta:
        self.finished = True
        return self._transcript.end(reason)
