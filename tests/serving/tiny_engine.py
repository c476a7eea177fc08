"""A real engine with a tiny random model, and the folder it can be saved to."""

import torch
from scripted_model import byte_tokenizer

from nanochat import NanoChatConfig, NanoChatForCausalLM
from nanochat.inference import Engine


def tiny_model(context_length: int = 256) -> NanoChatForCausalLM:
    """Two layers and the byte tokenizer's 265 tokens; logits that differ enough for answers that do."""
    torch.manual_seed(0)
    config = NanoChatConfig(
        vocab_size=265,
        hidden_size=32,
        intermediate_size=None,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=context_length,
        initializer_range=0.3,
    )
    return NanoChatForCausalLM(config).eval()


def tiny_engine(context_length: int = 256) -> Engine:
    """An engine that answers with noise, the same noise to the same request."""
    return Engine(tiny_model(context_length), byte_tokenizer(), threads=1)
