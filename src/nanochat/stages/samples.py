"""Samples while a model trains: how it goes on after the same few beginnings, again and again."""

import time
from collections.abc import Iterator
from itertools import islice

import numpy as np

from nanochat.data.store import TokenStore
from nanochat.inference.engine import Engine
from nanochat.inference.sampling import SamplingParams
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.tokenizer import NanoChatTokenizer

BEGINNINGS = 3
BEGINNING_TOKENS = 8  # of plain text
NEW_TOKENS = 24
TIME_SHARE = 0.03  # samples never take more of the time than this
MOST_CHARACTERS = 60  # of a beginning, on a line of the terminal

Sample = dict[str, str]  # "beginning" and "text"


class Samples:
    """Asks the model in training to go on with the beginnings of some held-out documents.

    Of plain text the first few tokens are given and the rest is drawn with a fixed seed; of a conversation everything
    up to the assistant's first word, and the answer is the likeliest one. PyTorch's own random numbers are left alone,
    so that training goes on as it would without samples.

    Args:
        tokenizer: of the model.
        store: held-out documents.
        context: of the model, in tokens; a beginning takes half of it at most.
    """

    def __init__(self, tokenizer: NanoChatTokenizer, store: TokenStore, context: int):
        self.tokenizer = tokenizer
        self.beginnings = list(islice(_beginnings(store, context // 2), BEGINNINGS))
        if store.mask is None:
            self.params = SamplingParams(NEW_TOKENS, temperature=0.8, top_k=50, seed=0)
        else:
            self.params = SamplingParams(NEW_TOKENS)
        self._begun, self._spent = time.monotonic(), 0.0

    @property
    def affordable(self) -> bool:
        """Whether samples have taken so little of the time yet that a new round is due."""
        return self._spent <= TIME_SHARE * (time.monotonic() - self._begun)

    def take(self, model: NanoChatForCausalLM) -> list[Sample]:
        """What the model makes of each beginning now."""
        if not self.beginnings:
            return []
        begun = time.monotonic()
        results = Engine(model, self.tokenizer).generate(self.beginnings, self.params)
        texts = self.tokenizer.batch_decode(self.beginnings, skip_special_tokens=True)
        self._spent += time.monotonic() - begun
        return [{"beginning": b, "text": result.text} for b, result in zip(texts, results, strict=True)]


def one_line(sample: Sample) -> str:
    """A sample for the terminal."""
    beginning, text = (" ".join(sample[name].split()) for name in ("beginning", "text"))
    if len(beginning) > MOST_CHARACTERS:
        beginning = "…" + beginning[-MOST_CHARACTERS:]
    return f"{beginning} ▸ {text}"


def _beginnings(store: TokenStore, most: int) -> Iterator[list[int]]:
    for start, end in zip(store.offsets[:-1], store.offsets[1:]):
        length = min(BEGINNING_TOKENS, most)
        if store.mask is not None:
            length = int(np.argmax(store.mask[start:end]))  # the first token that is learnt from
        if 0 < length <= most and length < end - start:
            yield store.tokens[start : start + length].tolist()
