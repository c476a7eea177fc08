"""Counts of parameters and operations, against the models themselves and PyTorch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nanochat.model.accounting import flops_per_token, parameter_counts
from nanochat.model.configuration import NanoChatConfig
from nanochat.model.modeling import NanoChatForCausalLM


def config(**values):
    defaults = {
        "vocab_size": 120, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 32,
    }  # fmt: skip
    return NanoChatConfig(**(defaults | values))


def original(depth, **values):
    """The shape of the original nanochat of that depth."""
    width = 64 * depth
    shape = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": width // 128}
    heads = {"num_key_value_heads": width // 128, "intermediate_size": 4 * width}
    return NanoChatConfig(**(shape | heads | {"vocab_size": 65536, "max_position_embeddings": 2048} | values))


KINDS = {
    "MHA": {},
    "GQA": {"num_key_value_heads": 3},
    "MQA": {"num_key_value_heads": 1},
    "bias": {"attention_bias": True},
    "GQA with bias": {"num_key_value_heads": 2, "attention_bias": True},
    "tied": {"tie_word_embeddings": True},
    "computed width": {"intermediate_size": None},
}


@pytest.mark.parametrize("values", KINDS.values(), ids=KINDS.keys())
def test_counts_are_those_of_the_model(values):
    model, counts = NanoChatForCausalLM(config(**values)), parameter_counts(config(**values))
    assert counts["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert counts["embedding"] == model.model.embed_tokens.weight.numel()
    assert counts["matrices"] == sum(parameter.numel() for parameter in model.model.layers.parameters())
    tied = model.lm_head.weight is model.model.embed_tokens.weight
    assert counts["head"] == (0 if tied else model.lm_head.weight.numel())


@pytest.mark.parametrize(("depth", "total"), [(20, 560_988_160), (32, 1_879_048_192)])
def test_the_original_models_have_their_published_sizes(depth, total):
    assert parameter_counts(original(depth))["total"] == total


def matrix_flops_of_a_forward_pass(shape, tokens):
    model = NanoChatForCausalLM(shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, tokens, dtype=torch.long), use_cache=False)
    by_operation = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in by_operation.items() if "attention" not in str(operation))


@pytest.mark.parametrize("values", [KINDS[kind] for kind in ("MHA", "GQA", "MQA", "tied", "computed width")])
def test_the_matrix_part_is_what_pytorch_counts(values):
    T, shape = 16, config(**values)
    attention = 6 * shape.num_hidden_layers * shape.hidden_size * T
    counted = matrix_flops_of_a_forward_pass(shape, T)
    assert 3 * counted == T * (flops_per_token(shape, T) - attention)


def test_a_training_step_costs_three_forward_passes():
    T, shape = 16, config(attn_implementation="eager")
    model = NanoChatForCausalLM(shape)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, T, dtype=torch.long), use_cache=False).logits.sum().backward()
    # Eager attention multiplies the full square of positions, of which a causal model needs half.
    square = flops_per_token(shape, T) + 6 * shape.num_hidden_layers * shape.hidden_size * T
    assert counter.get_total_flops() == T * square


def test_attention_grows_with_the_context_and_nothing_else_does():
    shape = config()
    per_position = 6 * shape.num_hidden_layers * shape.hidden_size
    assert flops_per_token(shape, 64) - flops_per_token(shape, 32) == 32 * per_position
