"""The soft-capped cross-entropy of training on a GPU in Triton: one program a row of logits, two passes over it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


@triton.jit
def _capped(logits, ids, V, cap, CAPPED: tl.constexpr):
    """cap tanh(z / cap) and its slope by z."""
    z = tl.load(logits + ids, mask=ids < V, other=float("-inf")).to(tl.float32)
    if CAPPED:
        tanh = 1.0 - 2.0 / (tl.exp(z * (2.0 / cap)) + 1.0)
        return tl.where(ids < V, cap * tanh, float("-inf")), 1.0 - tanh * tanh
    else:
        return z, 1.0


@triton.jit
def _softcap_cross_entropy(logits, targets, losses, V, cap, CAPPED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    logits += row * V
    target = tl.load(targets + row)
    most = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    of_target = tl.zeros((BLOCK,), tl.float32)
    lane = tl.arange(0, BLOCK)
    for start in range(0, V, BLOCK):
        z, _ = _capped(logits, start + lane, V, cap, CAPPED)
        higher = tl.maximum(tl.maximum(most, z), -3e38)  # a lane without logits
        total = total * tl.exp(most - higher) + tl.exp(z - higher)
        most = higher
        of_target += tl.where(start + lane == target, z, 0.0)
    highest = tl.max(most)
    normalizer = tl.sum(total * tl.exp(most - highest))
    trained = target >= 0
    tl.store(losses + row, tl.where(trained, tl.log(normalizer) - (tl.sum(of_target) - highest), 0.0))
    for start in range(0, V, BLOCK):
        ids = start + lane
        z, slope = _capped(logits, ids, V, cap, CAPPED)
        gradient = (tl.exp(z - highest) / normalizer - tl.where(ids == target, 1.0, 0.0)) * slope
        tl.store(logits + ids, tl.where(trained, gradient, 0.0), mask=ids < V)


def softcap_cross_entropy_(logits: Tensor, targets: Tensor, cap: float | None) -> Tensor:
    """Summed loss (scalar, fp32) of raw logits (N, V), which become its gradient.

    Targets (N) are int64; rows with a negative one count for nothing.
    """
    losses = torch.empty(len(logits), device=logits.device)
    _softcap_cross_entropy[(len(logits),)](
        logits, targets, losses, logits.shape[1], cap or 0.0, CAPPED=cap is not None, BLOCK=BLOCK, num_warps=8
    )
    return losses.sum()
