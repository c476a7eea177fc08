"""Tiny models for the tests of this folder: ours, and Transformers' own NanoChat with the same weights."""

import functools
import tempfile
from typing import Any

import torch
from transformers.models.nanochat import NanoChatForCausalLM as TheirModel

from nanochat import NanoChatConfig, NanoChatForCausalLM

VOCAB = 64


def tiny_config(**options: Any) -> NanoChatConfig:
    """Two layers, four heads of eight; the initializer range is large enough for logits that differ."""
    defaults = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "intermediate_size": None,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
    }
    return NanoChatConfig(**(defaults | options))


def tiny_model(seed: int = 0, **options: Any) -> NanoChatForCausalLM:
    """A tiny model in evaluation mode, with biases (where it has any) that are not zero."""
    torch.manual_seed(seed)
    model = NanoChatForCausalLM(tiny_config(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model.eval()


def their_model(model: NanoChatForCausalLM) -> TheirModel:
    """Transformers' own class, loaded from what `model` saves."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return TheirModel.from_pretrained(
            folder, attn_implementation=model.config._attn_implementation, dtype=model.dtype
        )


@functools.cache
def pair(**options: Any) -> tuple[NanoChatForCausalLM, TheirModel]:
    """The same weights in our class and in Transformers' own."""
    ours = tiny_model(**options)
    return ours, their_model(ours)


def random_ids(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    """Token ids, (batch, length)."""
    return torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(seed))
