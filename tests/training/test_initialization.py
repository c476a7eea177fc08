"""The weights a model starts its training with."""

import pytest
import torch
from training_setup import RECIPE, tiny_model

from nanochat.model.configuration import NanoChatConfig
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.training.initialization import initialize_for_training


@pytest.fixture(scope="module")
def model():
    config = NanoChatConfig(
        vocab_size=500, hidden_size=256, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attention_bias=True,
    )  # fmt: skip
    model = NanoChatForCausalLM(config)
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 7.0)  # whatever was there before must not matter
    initialize_for_training(model, seed=3)
    return model


def test_the_output_of_every_block_and_of_the_head_is_zero(model):
    zero = {name for name, parameter in model.named_parameters() if not parameter.any()}
    for layer in range(2):
        assert {f"model.layers.{layer}.self_attn.o_proj.weight", f"model.layers.{layer}.mlp.fc2.weight"} <= zero
    assert "lm_head.weight" in zero
    logits = model(torch.arange(20)[None]).logits
    assert not logits.any()


def test_biases_are_zero(model):
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    assert biases and not any(bias.any() for bias in biases)


def test_spread_of_embedding_and_matrices(model):
    parameters = dict(model.named_parameters())
    expected = {
        "model.embed_tokens.weight": 1.0,
        "model.layers.0.self_attn.q_proj.weight": 1 / 16,  # 256 in, 256 out
        "model.layers.1.self_attn.k_proj.weight": 0.5**0.5 / 16,  # 256 in, 128 out
        "model.layers.0.self_attn.v_proj.weight": 0.5**0.5 / 16,
        "model.layers.1.mlp.fc1.weight": 1 / 16,  # 256 in, 1024 out: no more than one
    }
    for name, std in expected.items():
        weight = parameters[name]
        assert weight.std().item() == pytest.approx(std, rel=0.03), name
        assert abs(weight.mean().item()) < 5 * std / weight.numel() ** 0.5, name


def test_the_seed_decides():
    def state(seed):
        return tiny_model(seed).state_dict()

    assert all(torch.equal(a, b) for a, b in zip(state(0).values(), state(0).values(), strict=True))
    assert not torch.equal(state(0)["model.embed_tokens.weight"], state(1)["model.embed_tokens.weight"])


def test_the_global_random_state_neither_matters_nor_changes():
    model = NanoChatForCausalLM(RECIPE.config())
    torch.manual_seed(5)
    before = torch.get_rng_state()
    initialize_for_training(model, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(model.model.embed_tokens.weight, tiny_model().model.embed_tokens.weight)
