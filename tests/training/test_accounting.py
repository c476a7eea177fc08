"""Counts of parameters and operations, against the models themselves and PyTorch's own counter."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nanochat.model.accounting import (
    activation_bytes_per_token,
    cost,
    flops_per_token,
    parameter_counts,
    training_seconds,
    training_state_bytes,
    utilization,
)
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


# ------------------------------------------------------------------------------------------------- memory, time, cost


def saved_bytes(shape, rows, attention, half):
    """Bytes that autograd keeps after a forward pass, weights and their bf16 copies apart."""
    model = NanoChatForCausalLM(shape)
    model.set_attn_implementation(attention)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes, kept = {}, []

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)  # alive, so that no address is used twice
        return tensor

    ids = torch.zeros(rows, shape.max_position_embeddings, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=half),
    ):
        model.model(input_ids=ids, use_cache=False)
    copies = 2 * parameter_counts(shape)["matrices"] if half else 0
    return sum(sizes.values()) - copies


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize(("heads", "context"), [(2, 32), (2, 256), (4, 128)])
def test_activations_take_no_more_than_estimated_and_not_much_less(attention, half, heads, context):
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": heads, "num_key_value_heads": heads}
    shape = config(**sizes, max_position_embeddings=context)
    counted = saved_bytes(shape, 2, attention, half) / (2 * context)
    estimate = activation_bytes_per_token(shape, context, half, keeps_attention=attention == "eager")
    assert counted <= estimate < 3 * counted


def test_the_state_is_weights_gradients_moments_and_copies():
    shape = config()
    counts = parameter_counts(shape)
    adamw, muon = counts["embedding"] + counts["head"], counts["matrices"]
    assert training_state_bytes(shape) == (4 + 4 + 2) * counts["total"] + 8 * adamw + 8 * muon


def test_utilization_time_and_cost():
    assert utilization(flops=5e12, seconds=10, peak_flops=1e12) == 0.5
    assert training_seconds(flops=5e12, peak_flops=1e12, utilization=0.5) == 10
    assert cost(seconds=5400, price_per_hour=24.0) == 36.0


def test_the_original_speedrun_costs_what_it_did():
    """Depth 20 on 20 tokens per parameter by 8 H100 took 3 h 51 min and $92, of which pretraining is the most."""
    flops = flops_per_token(original(20), 2048) * 20 * 560_988_160
    hours = training_seconds(flops, 8 * 989e12, 0.5) / 3600
    assert 2 < hours < 3.85 and 48 < cost(hours * 3600, 24.0) < 92
