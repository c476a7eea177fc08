"""Counting: parameters, floating-point operations, memory, and what they cost."""

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


def training_state_bytes(config: NanoChatConfig) -> int:
    """Memory that training holds whatever the batch, in bytes.

    Per weight: itself and its gradient in fp32 and a bf16 copy (10 bytes); for AdamW (embedding, head) two moments
    (8 bytes), for Muon (matrices) one, once more while it is brought up to date (8 bytes).
    """
    return 18 * parameter_counts(config)["total"]


def activation_bytes_per_token(
    config: NanoChatConfig, seq_len: int, half_precision: bool, keeps_attention: bool
) -> int:
    """Most memory that the forward pass keeps for the backward pass, in bytes per token of the micro-batch.

    Per layer 30 C for the residual stream, norms and attention, three tensors of the MLP's width, and, where attention
    is computed by plain products (`keeps_attention`), the weights of H heads over T positions; one layer more for what
    the backward pass holds of its own. Coefficients counted in PyTorch's saved tensors, rounded up; a compiled step
    keeps less.
    """
    C, H = config.hidden_size, config.num_attention_heads
    layer = 30 * C + 3 * (2 if half_precision else 4) * config.intermediate_size
    if keeps_attention:
        layer += 6 * H * seq_len
    return (config.num_hidden_layers + 1) * layer + 12 * C


def utilization(flops: float, seconds: float, peak_flops: float) -> float:
    """Share of the machine's peak: floating-point operations of the model per second, over those it can do (MFU).

    Operations of the model, not of the hardware: what is computed twice counts once (PaLM,
    https://arxiv.org/abs/2204.02311, appendix B).
    """
    return flops / (seconds * peak_flops)


def training_seconds(flops: float, peak_flops: float, utilization: float) -> float:
    """Time for so many floating-point operations at a share of the machine's peak."""
    return flops / (peak_flops * utilization)


def cost(seconds: float, price_per_hour: float) -> float:
    """Price of so much time, in the unit of `price_per_hour`."""
    return seconds / 3600 * price_per_hour
