"""Muon for the matrices of the blocks, AdamW for the embedding and the output head."""

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.training.distributed import local, on_whole_matrices

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Keller Jordan's quintic, https://kellerjordan.github.io/posts/muon/


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Replace each matrix of a stack (N, rows, cols) by an approximation of its nearest semi-orthogonal one.

    Five Newton–Schulz iterations X ← B X, B = a + b A + c A², A = X Xᵀ, drive all singular values into about 0.7 to
    1.2, which is close enough for Muon. They run in `dtype`; bf16 suffices: the iteration corrects its own rounding.
    For matrices clearly longer than wide, the Bs of a few iterations are multiplied first, small as they are (A becomes
    B A B), and X once for all; in two rounds, because a single one would leave rounding uncorrected for too long.
    """
    a, b, c = NEWTON_SCHULZ
    tall = matrices.size(-2) > matrices.size(-1)
    X = matrices.to(dtype)
    if tall:
        X = X.mT
    X = X / (X.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # the iteration converges for singular values up to 1
    identity = torch.eye(X.size(-2), dtype=X.dtype, device=X.device)
    for iterations in (3, 2) if X.size(-1) >= 2 * X.size(-2) else (1, 1, 1, 1, 1):
        A = X @ X.mT
        product = B = a * identity + b * A + c * (A @ A)
        for _ in range(iterations - 1):
            A = B @ A @ B
            B = a * identity + b * A + c * (A @ A)
            product = B @ product
        X = product @ X
    return (X.mT if tall else X).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum whose update is orthogonalized, for 2D weights.

    The learning rate is the spectral size of an update: `lr * sqrt(max(1, rows / cols))` as in the original
    nanochat. Weight decay is decoupled. Matrices of one shape are stacked and orthogonalized together. Of sharded
    parameters (DTensors) each process keeps its rows and orthogonalizes its share of the matrices. `dtype` is that of
    orthogonalization: float32 for processors whose bf16 products are slow.

    `found_inf`, a scalar on the device as `torch.amp.GradScaler` sets it, keeps the weights as they are where it is 1.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.bfloat16,
    ):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.orthogonalize = functools.partial(orthogonalize, dtype=dtype)
        for parameter in (p for group in self.param_groups for p in group["params"]):
            self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                self._step_stack(parameters, group, scale=max(1.0, shape[0] / shape[1]) ** 0.5)

    def _step_stack(self, parameters: list[nn.Parameter], group: dict[str, Any], scale: float) -> None:
        updates = []
        for parameter in parameters:
            assert parameter.grad is not None
            gradient, buffer = local(parameter.grad), local(self.state[parameter]["momentum_buffer"])
            buffer.lerp_(gradient, 1 - group["momentum"])
            updates.append(gradient.lerp(buffer, group["momentum"]))
        stack = on_whole_matrices(self.orthogonalize, torch.stack(updates), like=parameters[0])
        decay: float | Tensor = group["lr"] * group["weight_decay"]
        if self.found_inf is not None:
            stack = torch.where(self.found_inf > 0, 0, stack)
            decay = decay * (1 - self.found_inf)
        for parameter, update in zip(parameters, stack, strict=True):
            if group["weight_decay"]:
                local(parameter).mul_(1 - decay)
            local(parameter).add_(update, alpha=-group["lr"] * scale)


def build_optimizers(
    model: NanoChatForCausalLM,
    matrix_lr: float,
    embedding_lr: float,
    head_lr: float,
    weight_decay: float,
    dtype: torch.dtype = torch.bfloat16,
) -> list[torch.optim.Optimizer]:
    """The two optimizers of a NanoChatForCausalLM; each group remembers its peak rate as `initial_lr`.

    A tied embedding counts as the head. Biases, if the model has any, go with the embedding. `dtype` is that of Muon's
    matrix products.
    """
    matrices, embeddings, heads = [], [], []
    for name, parameter in model.named_parameters():
        if parameter is model.lm_head.weight:
            heads.append(parameter)
        elif parameter.ndim == 2 and "embed_tokens" not in name:
            matrices.append(parameter)
        else:
            embeddings.append(parameter)
    muon = Muon(matrices, lr=matrix_lr, weight_decay=weight_decay, dtype=dtype)
    groups = [{"params": p, "lr": lr} for p, lr in ((embeddings, embedding_lr), (heads, head_lr)) if p]
    adamw = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-10, weight_decay=0.0, fused=True)
    for parameter in embeddings + heads:  # as its first step would, so that a checkpoint has a place to load it to
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)
        zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        adamw.state[parameter] = {"step": step, **zeros}
    for group in muon.param_groups + adamw.param_groups:
        group["initial_lr"] = group["lr"]
    return [muon, adamw]


def state_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """All state of the optimizers by the names of parameters, such as `lm_head.weight.exp_avg`; not copies."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}.{key}": value
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
