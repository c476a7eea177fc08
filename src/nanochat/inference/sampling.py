"""How the next token is chosen: the parameters of a request, and the draw for a batch of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nanochat.common import UserError


@dataclass(frozen=True)
class SamplingParams:
    """How one answer is generated. The default is greedy: always the likeliest token, the same answer each time.

    For livelier chat, `temperature=0.7, top_k=50` is a good start.

    Attributes:
        max_new_tokens: The most tokens to add to the prompt, results of tools and the stop token counted.
        temperature: 0 is greedy; 1 samples from the model's own distribution; more is wilder.
        top_k: Sample among the `top_k` likeliest tokens only. None: all.
        top_p: Sample among the likeliest tokens that together have this probability (0 < top_p ≤ 1), counted at the
            given temperature and after `top_k`. None: all.
        seed: Whole number that fixes the draws: the same prompt, model and seed give the same answer, whatever else
            is in the batch. None: another answer each time.
        stop_token_ids: Tokens that end the answer. None: `<|assistant_end|>` and `<|bos|>`.

    Raises:
        UserError: for a value that is out of range, naming it.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop_token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not _is_whole(self.max_new_tokens) or self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be a whole number of at least 1, got {self.max_new_tokens!r}")
        # Beyond these bounds fp32 logits become infinite; within them it is all but greedy, or all but uniform.
        if not _is_number(self.temperature) or not (self.temperature == 0 or 1e-4 <= self.temperature <= 1e4):
            raise UserError(f"temperature must be 0 (greedy) or from 0.0001 to 10000, got {self.temperature!r}")
        if self.top_k is not None and (not _is_whole(self.top_k) or self.top_k < 1):
            raise UserError(f"top_k must be a whole number of at least 1, or None for all, got {self.top_k!r}")
        if self.top_p is not None and (not _is_number(self.top_p) or not 0 < self.top_p <= 1):
            raise UserError(f"top_p must be above 0 and at most 1, or None for all, got {self.top_p!r}")
        if self.seed is not None and (not _is_whole(self.seed) or not 0 <= self.seed < 2**63):
            raise UserError(f"seed must be a whole number from 0 to 2**63 - 1, or None, got {self.seed!r}")
        if self.stop_token_ids is not None:
            if isinstance(self.stop_token_ids, int) or not all(map(_is_whole, self.stop_token_ids)):
                raise UserError(f"stop_token_ids must be token ids, like (3, 7), got {self.stop_token_ids!r}")
            object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))

    def generator(self) -> torch.Generator:
        """Return a fresh source of draws for one request; on the CPU, so a seed means the same on every device."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return generator


def sample(
    logits: torch.Tensor, params: Sequence[SamplingParams], generators: Sequence[torch.Generator]
) -> torch.Tensor:
    """Choose one token per row: (B, V) fp32 logits and B params and generators to (B,) int64.

    Each sampled row uses up one number of its own generator, so a row's choice depends on nothing but its own
    logits, params and generator. Forbidden tokens come in with a logit of −inf.
    """
    greedy = logits.argmax(dim=-1)
    if all(row.temperature == 0 for row in params):
        return greedy
    probabilities = _distribution(logits, params)
    draws = [
        torch.rand((), generator=generator, dtype=torch.float64).item() if row.temperature > 0 else 0.0
        for row, generator in zip(params, generators)
    ]
    # Inversion in the order of the ids: the first token at which the cumulative probability reaches the threshold,
    # which is above 0 and at most the total. (In the order of probability, rounding that swaps two nearly equal
    # tokens would change the answer with the batch. In fp32 the tail of a large vocabulary would get lost.)
    cumulative = probabilities.double().cumsum(dim=-1)  # (B, V)
    thresholds = (1 - torch.tensor(draws, dtype=torch.float64, device=logits.device)) * cumulative[:, -1]
    drawn = torch.searchsorted(cumulative, thresholds[:, None])[:, 0]
    is_greedy = torch.tensor([row.temperature == 0 for row in params], device=logits.device)
    return torch.where(is_greedy, greedy, drawn)


def _distribution(logits: torch.Tensor, params: Sequence[SamplingParams]) -> torch.Tensor:
    """Return (B, V) probabilities after temperature, top-k and top-p, not renormalised after top-p."""
    V = logits.shape[-1]
    # A greedy row's distribution is not used: any temperature will do.
    temperature = torch.tensor([row.temperature or 1.0 for row in params], device=logits.device)[:, None]
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature  # no overflow however cold it is
    if any(row.top_k is not None for row in params):
        counts = [min(row.top_k or V, V) for row in params]
        likeliest = logits.topk(max(counts), dim=-1).values
        smallest = likeliest.gather(1, torch.tensor(counts, device=logits.device)[:, None] - 1)
        logits = logits.masked_fill(logits < smallest, -math.inf)
    probabilities = logits.softmax(dim=-1)
    if any(row.top_p is not None for row in params):
        top_p = torch.tensor([row.top_p or 1.0 for row in params], device=logits.device)[:, None]
        ordered = probabilities.sort(dim=-1, descending=True).values
        before = ordered.cumsum(dim=-1) - ordered  # mass of the likelier ones: kept while it is below top_p
        kept = (before < top_p).sum(dim=-1, keepdim=True)
        smallest = ordered.gather(1, kept - 1)
        probabilities = probabilities.masked_fill(probabilities < smallest, 0.0)
    return probabilities


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
