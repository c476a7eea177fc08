"""How the next tokens are chosen from logits, for many sequences with parameters of their own."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from nanochat.inference.request import Sample


def choose(logits: Tensor, samples: Sequence[Sample]) -> list[int]:
    """The next token of each sample, from (B, V) fp32 logits, which are changed; forbidden ones come in as -inf.

    A drawn token uses up one number of the sample's own generator, so that a choice depends on nothing but the
    sample's own logits, parameters, tokens and generator. Raises FloatingPointError for logits that are not numbers.
    """
    for row, sample in zip(logits, samples):
        if sample.adjusts_logits:
            _adjust(row, sample)
    best, greedy = logits.max(dim=-1)
    if not torch.isfinite(best).all():
        raise FloatingPointError("the model's logits are not finite: its weights are damaged or too large")
    choices = greedy.tolist()
    drawing = [n for n, sample in enumerate(samples) if sample.params.temperature > 0]
    if drawing:
        drawn = _draw(logits if len(drawing) == len(choices) else logits[drawing], [samples[n] for n in drawing])
        for n, token in zip(drawing, drawn):
            choices[n] = token
    return choices


def _adjust(row: Tensor, sample: Sample) -> None:
    """Penalties and bias on the logits (V,) of one sample."""
    params = sample.params
    if params.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(sample.tokens)), device=row.device)
        values = row[seen]
        row[seen] = torch.where(values > 0, values / params.repetition_penalty, values * params.repetition_penalty)
    if params.presence_penalty or params.frequency_penalty:
        ids, counts = torch.tensor(sample.answer, device=row.device, dtype=torch.long).unique(return_counts=True)
        row[ids] -= params.presence_penalty + params.frequency_penalty * counts
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=row.device)
        row[ids] += torch.tensor(list(params.logit_bias.values()), device=row.device, dtype=row.dtype)


def _draw(logits: Tensor, samples: Sequence[Sample]) -> list[int]:
    probabilities = distribution(logits, samples)
    draws = [torch.rand((), generator=sample.generator, dtype=torch.float64).item() for sample in samples]
    # Inversion in the order of the ids: the first token at which the cumulative probability reaches the threshold,
    # which is above 0 and at most the total. (In the order of probability, rounding that swaps two nearly equal
    # tokens would change the answer with the batch. In fp32 the tail of a large vocabulary would get lost.)
    cumulative = probabilities.double().cumsum(dim=-1)  # (B, V)
    thresholds = (1 - torch.tensor(draws, dtype=torch.float64, device=logits.device)) * cumulative[:, -1]
    return torch.searchsorted(cumulative, thresholds[:, None])[:, 0].tolist()


def distribution(logits: Tensor, samples: Sequence[Sample]) -> Tensor:
    """(B, V) probabilities after temperature, top-k, top-p and min-p, not renormalised after the last two."""
    V = logits.shape[-1]
    params = [sample.params for sample in samples]
    # No overflow however cold it is. A greedy row's distribution is not used: any temperature will do.
    temperature = torch.tensor([row.temperature or 1.0 for row in params], device=logits.device)[:, None]
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
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
    if any(row.min_p for row in params):
        min_p = torch.tensor([row.min_p or 0.0 for row in params], device=logits.device)[:, None]
        likeliest = probabilities.amax(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < min_p * likeliest, 0.0)
    return probabilities


def logprobs_of(logits: Tensor, token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The natural log of a token's probability by (V,) logits, and the `count` likeliest tokens with theirs."""
    logprobs = logits.log_softmax(dim=-1)
    if not count:
        return logprobs[token].item(), ()
    values, ids = logprobs.topk(min(count, len(logprobs)))
    return logprobs[token].item(), tuple(zip(ids.tolist(), values.tolist()))
