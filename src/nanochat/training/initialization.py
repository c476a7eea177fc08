"""The weights that a model starts its training with."""

import torch
from torch import nn


@torch.no_grad()
def initialize_for_training(model: nn.Module, seed: int) -> None:
    """Initialise a NanoChatForCausalLM in place as the original nanochat does.

    Embeddings N(0, 1); output projections of attention and MLP, and the output head, zero, so that the model starts
    as the uniform distribution and every block as the identity; other matrices N(0, std) with
    std = min(1, sqrt(out / in)) / sqrt(in) (https://arxiv.org/abs/2310.17813).
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or any(part in name for part in ("o_proj", "fc2", "lm_head")):
            parameter.zero_()
            continue
        if "embed_tokens" in name:
            std = 1.0
        else:
            fan_out, fan_in = parameter.shape
            std = min(1.0, (fan_out / fan_in) ** 0.5) / fan_in**0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
