"""The training loss: soft-capped cross-entropy in fp32, in chunks, so that full logits never exist."""

from typing import Any

import torch
from torch import Tensor

from nanochat.data.batches import IGNORED, Batch
from nanochat.model.modeling import NanoChatForCausalLM

CHUNK_TOKENS = 512  # a chunk's logits stay near a CPU's cache, and its products are still large enough to be quick


def chunked_loss(hidden_states: Tensor, weight: Tensor, labels: Tensor, cap: float | None) -> Tensor:
    """Sum of -log p(label) in nats (scalar, fp32) over all positions whose label is not -100.

    hidden_states (..., C) are the outputs of the decoder, weight (V, C) is the output head, labels (...) are aligned
    with the hidden states (already shifted). Equal to `F.cross_entropy(softcap(hidden @ weight.T), reduction="sum")`,
    but positions that are not trained on are never projected, and memory holds one chunk of logits at a time: the
    gradient is taken chunk by chunk during the forward pass. Matrix products run in bf16 under autocast.
    """
    hidden_states, labels = hidden_states.flatten(0, -2), labels.flatten()
    trained = labels != IGNORED
    return _ChunkedLoss.apply(hidden_states[trained], weight, labels[trained], cap)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, weight: Tensor, labels: Tensor, cap: float | None) -> Tensor:
        device = hidden_states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
        W = weight.to(dtype)  # (V, C)
        with_gradient = hidden_states.requires_grad or weight.requires_grad
        total = torch.zeros((), dtype=torch.float32, device=hidden_states.device)
        grad_hidden, grad_weight = torch.zeros_like(hidden_states), torch.zeros_like(weight, dtype=torch.float32)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(labels), CHUNK_TOKENS):
                rows = slice(start, start + CHUNK_TOKENS)
                x, targets = hidden_states[rows].to(dtype), labels[rows, None]
                logits = (x @ W.T).float()  # (chunk, V)
                if cap is not None:
                    logits = torch.tanh_(logits.div_(cap))
                    slope = 1 - logits.square()  # of the soft-cap
                    logits.mul_(cap)
                log_normalizer = logits.logsumexp(-1, keepdim=True)
                total += (log_normalizer - logits.gather(1, targets)).sum()
                if not with_gradient:
                    continue
                gradient = logits.sub_(log_normalizer).exp_()  # softmax, then minus one at the target
                gradient.scatter_add_(1, targets, torch.full_like(log_normalizer, -1.0))
                if cap is not None:
                    gradient.mul_(slope)
                gradient = gradient.to(dtype)
                grad_hidden[rows] = gradient @ W
                grad_weight += gradient.T @ x
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grad_outputs[0], grad_weight * grad_outputs[0], None, None


def loss_of(model: NanoChatForCausalLM, batch: Batch) -> Tensor:
    """Summed loss in nats (scalar, fp32) over the trained labels of a batch."""
    outputs = model.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    cap = model.config.final_logit_softcapping
    return chunked_loss(outputs.last_hidden_state, model.lm_head.weight, batch.labels, cap)
