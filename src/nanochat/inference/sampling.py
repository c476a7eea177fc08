"""What a request may ask for: how its tokens are chosen, where they end, and what is told about them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nanochat.common import UserError

MOST_LOGPROBS = 20
MOST_SAMPLES = 128


@dataclass(frozen=True)
class SamplingParams:
    """How one prompt is answered. The default is greedy: always the likeliest token, the same answer each time.

    For livelier chat, `temperature=0.7, top_k=50` is a good start.

    Attributes:
        max_new_tokens: The most tokens to add to the prompt, results of tools and the stop token counted.
        temperature: 0 is greedy; 1 samples from the model's own distribution; more is wilder.
        top_k: Sample among the `top_k` likeliest tokens only. None: all.
        top_p: Sample among the likeliest tokens that together have this probability (0 < top_p ≤ 1), counted at the
            given temperature and after `top_k`. None: all.
        min_p: Sample among tokens at least this many times as likely as the likeliest (0 to 1). None: all.
        repetition_penalty: Divides positive and multiplies negative logits of all tokens that occur in prompt or
            answer (https://arxiv.org/abs/1909.05858, §4.1). 1: none.
        presence_penalty: Subtracted from the logits of tokens that occur in the answer (-2 to 2).
        frequency_penalty: Subtracted from a token's logit for each time it occurs in the answer (-2 to 2).
        logit_bias: Added to the logits of some ids (-100 to 100, which all but forbids or forces them).
        seed: Whole number that fixes the draws: the same prompt, model and seed give the same answer, whatever else
            is in the batch. None: another answer each time.
        stop: Strings that end the answer, which is cut before the first of them. A single string is one.
        stop_token_ids: Tokens that end the answer. None: `<|assistant_end|>` and `<|bos|>`.
        n: How many answers to give. They share the prompt's computation; the first is that of n = 1.
        logprobs: None: no probabilities; 0: those of the tokens; up to 20: also so many of the likeliest at each place.

    Raises:
        UserError: for a value that is out of range, naming it.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] | None = None
    n: int = 1
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _check_whole("max_new_tokens", self.max_new_tokens, 1)
        # Beyond these bounds fp32 logits become infinite; within them it is all but greedy, or all but uniform.
        if not _is_number(self.temperature) or not (self.temperature == 0 or 1e-4 <= self.temperature <= 1e4):
            raise UserError(f"temperature must be 0 (greedy) or from 0.0001 to 10000, got {self.temperature!r}")
        if self.top_k is not None and (not _is_whole(self.top_k) or self.top_k < 1):
            raise UserError(f"top_k must be a whole number of at least 1, or None for all, got {self.top_k!r}")
        if self.top_p is not None and (not _is_number(self.top_p) or not 0 < self.top_p <= 1):
            raise UserError(f"top_p must be above 0 and at most 1, or None for all, got {self.top_p!r}")
        if self.min_p is not None:
            _check_range("min_p", self.min_p, 0, 1)
        _check_range("repetition_penalty", self.repetition_penalty, 0.01, 100)
        _check_range("presence_penalty", self.presence_penalty, -2, 2)
        _check_range("frequency_penalty", self.frequency_penalty, -2, 2)
        if self.seed is not None and (not _is_whole(self.seed) or not 0 <= self.seed < 2**63):
            raise UserError(f"seed must be a whole number from 0 to 2**63 - 1, or None, got {self.seed!r}")
        _check_whole("n", self.n, 1, MOST_SAMPLES)
        if self.logprobs is not None:
            _check_whole("logprobs", self.logprobs, 0, MOST_LOGPROBS)
        object.__setattr__(self, "stop", _strings(self.stop))
        if self.stop_token_ids is not None:
            if not isinstance(self.stop_token_ids, Iterable) or not all(map(_is_whole, self.stop_token_ids)):
                raise UserError(f"stop_token_ids must be token ids, like (3, 7), got {self.stop_token_ids!r}")
            object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        self._check_bias()

    def _check_bias(self) -> None:
        if self.logit_bias is None:
            return
        if not isinstance(self.logit_bias, Mapping):
            raise UserError(f"logit_bias must map token ids to numbers, like {{42: -100}}, got {self.logit_bias!r:.80}")
        for id, bias in self.logit_bias.items():
            if not _is_whole(id):
                raise UserError(f"logit_bias must map token ids to numbers, but has the key {id!r}")
            _check_range(f"logit_bias of token {id}", bias, -100, 100)


def _strings(stop: Any) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else stop
    if not isinstance(strings, tuple | list) or not all(isinstance(text, str) and text for text in strings):
        raise UserError(f"stop must be a string or several, none of them empty, got {stop!r:.80}")
    return tuple(strings)


def _check_whole(name: str, value: object, least: int, most: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{name} must be a whole number {bounds}, got {value!r}")


def _check_range(name: str, value: object, least: float, most: float) -> None:
    if not isinstance(value, int | float) or not _is_number(value) or not least <= value <= most:
        raise UserError(f"{name} must be from {least:g} to {most:g}, got {value!r}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
