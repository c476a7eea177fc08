"""How the next token is chosen from logits."""

import math

import torch
from torch import Tensor

from nanochat.inference.request import Sample
from nanochat.inference.sampling import SamplingParams

NOT_FINITE = "the model's logits are not finite: its weights are damaged or too large"


def choose(logits: Tensor, sample: Sample) -> int:
    """The next token of a sample, from (V,) fp32 logits, which are changed; forbidden ones come in as -inf.

    A drawn token uses up one draw of the sample's own generator, so that a choice depends on nothing but the sample's
    own logits, parameters, tokens and generator. Raises FloatingPointError for logits that are not numbers.
    """
    if sample.adjusts_logits:
        _adjust(logits, sample)
    scores = logits.numpy()  # small steps are sooner done there
    likeliest = int(scores.argmax())
    if not math.isfinite(scores[likeliest]):
        raise FloatingPointError(NOT_FINITE)
    return likeliest if sample.params.temperature == 0 else _draw(logits, sample)


def wish(sample: Sample) -> tuple[float, ...]:
    """What a sample's next token is to be chosen by on a GPU: temperature, top-k, top-p, min-p, draw."""
    params = sample.params
    if params.temperature == 0 or params.top_k == 1:
        return 0.0, 0.0, 1.0, 0.0, 0.0
    top_p = 1.0 if params.top_p is None else params.top_p
    return params.temperature, params.top_k or 0, top_p, params.min_p or 0.0, sample.draw()


def distribution(logits: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Token ids, ascending, and what each weighs in a draw: of (V,) logits by temperature, top-k, top-p and min-p.

    All other tokens have no chance. The weights need not add up to 1.
    """
    V = len(logits)
    ids = torch.arange(V, device=logits.device)
    if params.top_k is not None and params.top_k < V:
        logits, ids = logits.topk(params.top_k)
    weights = ((logits - logits.max()) / params.temperature).softmax(dim=-1)  # no overflow however cold it is
    if params.top_p is not None:
        # Tokens below this bound have less than 1 - top_p together, so the likelier ones have more than top_p.
        kept = (weights > (1 - params.top_p) / V).nonzero()[:, 0]
        weights, order = weights[kept].sort(descending=True, stable=True)
        before = weights.double().cumsum(0) - weights  # what the likelier ones weigh
        count = int((before < params.top_p).sum())
        weights, ids = weights[:count], ids[kept][order[:count]]
    if params.min_p:
        kept = (weights >= params.min_p * weights.max()).nonzero()[:, 0]
        weights, ids = weights[kept], ids[kept]
    if len(ids) < V or params.top_p is not None:  # not in the order of the ids any more
        ids, order = ids.sort()
        weights = weights[order]
    return ids, weights


def _draw(logits: Tensor, sample: Sample) -> int:
    ids, weights = distribution(logits, sample.params)
    # Inversion in the order of the ids: the first token at which the cumulative weight reaches the threshold, which is
    # above 0 and at most the total. (In the order of weight, rounding that swaps two nearly equal tokens would
    # change the answer from machine to machine. In fp32 the tail of a large vocabulary would get lost.)
    cumulative = weights.double().cumsum(0)
    return int(ids[torch.searchsorted(cumulative, (1 - sample.draw()) * cumulative[-1])])


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


def logprobs_of(logits: Tensor, token: int, count: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The natural log of a token's probability by (V,) logits, and the `count` likeliest tokens with theirs."""
    logprobs = logits.log_softmax(dim=-1)
    if not count:
        return logprobs[token].item(), ()
    values, ids = logprobs.topk(min(count, len(logprobs)))
    return logprobs[token].item(), tuple(zip(ids.tolist(), values.tolist()))
