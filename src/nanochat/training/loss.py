"""The training loss: soft-capped cross-entropy in fp32, in chunks, so that full logits never exist."""

from typing import Any

import torch
from torch import Tensor

from nanochat.data.batches import IGNORED, Batch
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.native import has_triton, kernels

# On a CPU a chunk's logits stay near the cache, and its products are still large enough to be quick (docs/log.md).
CHUNK_TOKENS = {"cpu": 512, "cuda": 4096, "mps": 1024}
MOST_CAP = 40.0  # for the kernel, which sums e^z for |z| <= cap as it is


def chunked_loss(hidden_states: Tensor, weight: Tensor, labels: Tensor, cap: float | None) -> Tensor:
    """Sum of -log p(label) in nats (scalar, fp32) over all positions whose label is not -100.

    hidden_states (..., C) are the outputs of the decoder, weight (V, C) is the output head, labels (...) are aligned
    with the hidden states (already shifted). Equal to `F.cross_entropy(softcap(hidden @ weight.T), reduction="sum")`,
    but memory holds one chunk of logits at a time: the gradient is taken chunk by chunk during the forward pass. On a
    CPU, positions that are not trained on are never projected. Matrix products run in bf16 under autocast.
    """
    hidden_states, labels = hidden_states.flatten(0, -2), labels.flatten()
    if not hidden_states.is_cuda:  # a GPU would have to be waited for, to learn how many there are
        trained = labels != IGNORED
        hidden_states, labels = hidden_states[trained], labels[trained]
    return _ChunkedLoss.apply(hidden_states, weight, labels, cap)


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_states: Tensor, weight: Tensor, labels: Tensor, cap: float | None) -> Tensor:
        device = hidden_states.device.type
        chunk = CHUNK_TOKENS[device]
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
        x, W = hidden_states.detach().to(dtype), weight.detach().to(dtype)  # (N, C), (V, C)
        with_gradient = hidden_states.requires_grad or weight.requires_grad
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        grad_hidden = torch.empty_like(x)
        grad_weight = torch.zeros_like(W, dtype=torch.float32)
        buffer = torch.empty(min(chunk, len(x)), len(W), dtype=dtype, device=x.device)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(x), chunk):
                rows = slice(start, start + chunk)
                logits = torch.mm(x[rows], W.T, out=buffer[: len(x[rows])])  # (chunk, V)
                total += _cross_entropy_(logits, labels[rows], cap)
                if with_gradient:
                    torch.mm(logits, W, out=grad_hidden[rows])
                    _add_product(grad_weight, logits.T, x[rows])
        # Not saved for backward, so that the way back may change them in place: it is gone once.
        ctx.gradients = grad_hidden.to(hidden_states.dtype), grad_weight.to(weight.dtype)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_hidden, grad_weight = ctx.gradients
        del ctx.gradients
        return grad_hidden.mul_(grad_outputs[0]), grad_weight.mul_(grad_outputs[0]), None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, for a total in fp32."""
    if a.dtype == torch.float32:  # at once, where the types allow it: no (V, C) of a chunk's own
        total.addmm_(a, b)
        return
    part = a @ b
    run = kernels() if total.device.type == "cpu" and part.dtype == torch.bfloat16 else None
    if run is None:
        total += part
    else:  # PyTorch would first make an fp32 copy of the part
        run("add_to", part.dtype, part, total, total.numel())


def _cross_entropy_(logits: Tensor, targets: Tensor, cap: float | None) -> Tensor:
    """Summed loss of raw logits (N, V), which become its gradient with regard to them; all but them in fp32."""
    if logits.is_cuda and has_triton():
        from nanochat.native.cuda_loss import softcap_cross_entropy_

        return softcap_cross_entropy_(logits, targets, cap)
    run = kernels() if logits.device.type == "cpu" and logits.dtype != torch.float64 else None
    if run is None or cap is None or cap > MOST_CAP:
        return plain_cross_entropy_(logits, targets, cap)
    losses = torch.empty(len(logits))
    run("softcap_cross_entropy", logits.dtype, logits, targets, losses, *logits.shape, float(cap), 1.0)
    return losses.sum()


def plain_cross_entropy_(logits: Tensor, targets: Tensor, cap: float | None) -> Tensor:
    """The same in PyTorch's operators, the twin of the kernels in C and Triton.

    Rows whose target is -100 count for nothing.
    """
    trained, targets = (targets != IGNORED).float(), targets.clamp(min=0)
    z = logits.float()
    slope = None  # of the soft-cap
    if cap is not None:
        tanh = torch.tanh(z / cap)
        z, slope = cap * tanh, 1 - tanh.square()
    log_normalizer = z.logsumexp(-1, keepdim=True)
    loss = ((log_normalizer - z.gather(1, targets[:, None])).squeeze(1) * trained).sum()
    gradient = (z - log_normalizer).exp()  # softmax, then minus one at the target
    gradient = gradient - (torch.arange(z.shape[1], device=z.device) == targets[:, None]).float()
    gradient = gradient * trained[:, None]
    logits.copy_(gradient if slope is None else gradient * slope)
    return loss


def loss_of(model: NanoChatForCausalLM, batch: Batch) -> Tensor:
    """Summed loss in nats (scalar, fp32) over the trained labels of a batch."""
    outputs = model.model(input_ids=batch.input_ids, position_ids=batch.position_ids, use_cache=False)
    cap = model.config.final_logit_softcapping
    return chunked_loss(outputs.last_hidden_state, model.lm_head.weight, batch.labels, cap)
