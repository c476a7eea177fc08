"""The layer written by hand is the model's own layer: the same outputs, the same gradients."""

import pytest
import torch
from torch import nn

from nanochat.model.configuration import NanoChatConfig
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.native import kernels
from nanochat.training.compilation import accelerate
from nanochat.training.native_layer import use_native_layers

pytestmark = pytest.mark.skipif(kernels() is None, reason="there is no C compiler")


def two_models(**values):
    """The same weights twice: in plain PyTorch, and with native layers."""
    made = {
        "vocab_size": 300, "hidden_size": 64, "intermediate_size": 200, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 1024,
    }  # fmt: skip
    plain, native = (NanoChatForCausalLM(NanoChatConfig(**(made | values))) for _ in range(2))
    generator = torch.Generator().manual_seed(1)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.15, generator=generator)
    native.load_state_dict(plain.state_dict())
    plain.set_attn_implementation("eager")
    assert use_native_layers(native)
    return plain, native


def outputs_and_gradients(model, ids, position_ids, dtype):
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        outputs = model.model(input_ids=ids, position_ids=position_ids, use_cache=False).last_hidden_state
    weights = torch.sin(torch.arange(outputs.numel()).view_as(outputs).float())
    (outputs.float() * weights).sum().backward()
    return outputs, {name: p.grad for name, p in model.model.named_parameters()}


def packed(rows, tokens, length):
    """Positions from 0 that start anew after every `length` tokens, in each row elsewhere."""
    positions = torch.stack([(torch.arange(tokens) + 5 * row) % length for row in range(rows)])
    return torch.minimum(positions, torch.arange(tokens))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [None, 11])
@pytest.mark.parametrize(("tokens", "kv_heads"), [(48, 4), (40, 2), (33, 1), (1, 4), (600, 2), (1024, 4)])
def test_outputs_and_gradients(tokens, kv_heads, length, dtype):
    plain, native = two_models(num_key_value_heads=kv_heads)
    rows = 3 if tokens < 512 else 2
    ids = torch.randint(300, (rows, tokens), generator=torch.Generator().manual_seed(2))
    position_ids = None if length is None else packed(rows, tokens, length)
    expected, expected_gradients = outputs_and_gradients(plain, ids, position_ids, dtype)
    outputs, gradients = outputs_and_gradients(native, ids, position_ids, dtype)
    loose = {torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    assert (outputs - expected).norm() <= loose * expected.norm()
    for name, gradient in gradients.items():
        difference = (gradient - expected_gradients[name]).norm()
        assert difference <= loose * expected_gradients[name].norm() + 1e-5, name


def test_documents_do_not_see_one_another():
    _, model = two_models()
    ids = torch.randint(300, (1, 20), generator=torch.Generator().manual_seed(3))
    position_ids = torch.cat([torch.arange(12), torch.arange(8)])[None]
    both = model.model(input_ids=ids, position_ids=position_ids, use_cache=False).last_hidden_state
    alone = model.model(input_ids=ids[:, 12:], use_cache=False).last_hidden_state
    torch.testing.assert_close(both[:, 12:], alone, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_gives_the_same():
    plain, native = two_models()
    native.gradient_checkpointing_enable()
    plain.train(), native.train()
    ids = torch.randint(300, (2, 30))
    _, expected = outputs_and_gradients(plain, ids, None, torch.float32)
    _, gradients = outputs_and_gradients(native, ids, None, torch.float32)
    for name in expected:
        torch.testing.assert_close(gradients[name], expected[name], rtol=1e-4, atol=1e-4)


def test_generation_with_a_cache_goes_the_usual_way():
    plain, native = (model.eval() for model in two_models())
    ids = torch.randint(300, (2, 10))
    arguments = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(plain.generate(ids, **arguments), native.generate(ids, **arguments))


def test_a_number_that_is_none_is_seen():
    _, model = two_models()
    with torch.no_grad():
        model.model.layers[0].mlp.fc1.weight[3, 3] = float("nan")
    outputs = model.model(input_ids=torch.randint(300, (1, 8)), use_cache=False).last_hidden_state
    assert outputs.isnan().all()


@pytest.mark.parametrize("values", [{"hidden_act": "gelu"}, {"attention_bias": True}, {"attention_dropout": 0.1}])
def test_other_layers_stay_as_they_are(values):
    model = NanoChatForCausalLM(NanoChatConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1,
                                               num_attention_heads=2, **values))  # fmt: skip
    assert not use_native_layers(model)
    assert "plain PyTorch" in accelerate(model, 64)
    assert "forward" not in vars(model.model.layers[0])
