"""Counting: parameters and floating-point operations."""

from nanochat.model.configuration import NanoChatConfig


def parameter_counts(config: NanoChatConfig) -> dict[str, int]:
    """Weights by kind: `embedding`, `matrices` (all blocks, biases included), `head` (0 if tied), `total`."""
    C, V = config.hidden_size, config.vocab_size
    key_width = config.num_key_value_heads * C // config.num_attention_heads
    attention = 2 * C * C + 2 * C * key_width
    if config.attention_bias:
        attention += 2 * C + 2 * key_width
    matrices = config.num_hidden_layers * (attention + 2 * C * config.intermediate_size)
    head = 0 if config.tie_word_embeddings else V * C
    return {"embedding": V * C, "matrices": matrices, "head": head, "total": V * C + matrices + head}


def flops_per_token(config: NanoChatConfig, seq_len: int) -> int:
    """Floating-point operations to train on one token: forward 2, backward 4 per weight that multiplies.

    6 (matrices + head) + 6 L C T: the second term is attention's two products over T/2 earlier positions on average
    (PaLM, https://arxiv.org/abs/2204.02311, appendix B, counts the full square: twice as much). The embedding is a
    lookup and costs nothing.
    """
    counts = parameter_counts(config)
    head = config.vocab_size * config.hidden_size
    attention = config.num_hidden_layers * config.hidden_size * seq_len
    return 6 * (counts["matrices"] + head + attention)
