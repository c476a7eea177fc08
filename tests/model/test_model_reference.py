"""The model against its formulas, written out one number at a time in fp64 with numpy; no code shared with it."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_models import random_ids, tiny_model

from nanochat import NanoChatForCausalLM

Array = NDArray[np.float64]


def reference_logits(model: NanoChatForCausalLM, ids: list[int]) -> Array:
    """Logits (T, V) of one sequence. Weights and sizes are read off the model, nothing is computed by it."""
    config = model.config
    weights = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    D = config.hidden_size // heads
    theta = config.rope_parameters["rope_theta"]

    def norm(x: Array) -> Array:
        return x / np.sqrt((x**2).mean() + config.rms_norm_eps)

    def linear(x: Array, name: str) -> Array:
        return weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", 0.0)

    def rotate(x: Array, position: int) -> Array:
        """The pair (x[i], x[i + D/2]) as a complex number, turned by minus position · theta^(-2i/D)."""
        turned = (x[: D // 2] + 1j * x[D // 2 :]) * np.exp(-1j * position * theta ** (-np.arange(0, D, 2) / D))
        return np.concatenate([turned.real, turned.imag])

    def attention(xs: list[Array], name: str) -> list[Array]:
        out = []
        for t, x in enumerate(xs):
            query = linear(x, f"{name}.q_proj").reshape(heads, D)
            mixed = np.zeros((heads, D))
            for head in range(heads):
                kv = head * kv_heads // heads
                q = norm(rotate(query[head], t))
                scores = np.empty(t + 1)
                values = np.empty((t + 1, D))
                for s in range(t + 1):
                    key = linear(xs[s], f"{name}.k_proj").reshape(kv_heads, D)[kv]
                    scores[s] = q @ norm(rotate(key, s)) / np.sqrt(D)
                    values[s] = linear(xs[s], f"{name}.v_proj").reshape(kv_heads, D)[kv]
                chances = np.exp(scores - scores.max())
                mixed[head] = chances / chances.sum() @ values
            out.append(linear(mixed.flatten(), f"{name}.o_proj"))
        return out

    xs = [norm(weights["model.embed_tokens.weight"][i]) for i in ids]
    for layer in range(config.num_hidden_layers):
        name = f"model.layers.{layer}"
        xs = [x + y for x, y in zip(xs, attention([norm(x) for x in xs], f"{name}.self_attn"), strict=True)]
        xs = [x + linear(np.maximum(linear(norm(x), f"{name}.mlp.fc1"), 0) ** 2, f"{name}.mlp.fc2") for x in xs]
    logits = np.stack([linear(norm(x), "lm_head") for x in xs])
    cap = config.final_logit_softcapping
    return logits if cap is None else cap * np.tanh(logits / cap)


@pytest.mark.parametrize("kv_heads", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
@pytest.mark.parametrize("cap", [15.0, 2.0, None])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_the_formulas(kv_heads: int, cap: float | None, bias: bool) -> None:
    model = tiny_model(num_key_value_heads=kv_heads, final_logit_softcapping=cap, attention_bias=bias)
    ids = random_ids(1, 10)
    expected = torch.from_numpy(reference_logits(model, ids[0].tolist())).float()
    torch.testing.assert_close(model(ids).logits[0], expected, atol=1e-5, rtol=0)


def test_other_theta_epsilon_and_width() -> None:
    model = tiny_model(hidden_size=24, num_attention_heads=2, intermediate_size=40, rope_theta=7.0, rms_norm_eps=0.05)
    ids = random_ids(1, 10)
    expected = torch.from_numpy(reference_logits(model, ids[0].tolist())).float()
    torch.testing.assert_close(model(ids).logits[0], expected, atol=1e-5, rtol=0)


def test_the_reference_turns_the_way_the_model_does() -> None:
    """Turned the other way the logits are others: the direction is tested, not only that something turns."""
    model = tiny_model()
    ids = random_ids(1, 10)
    with torch.no_grad():
        model.model.rotary_emb.inv_freq.neg_()
    expected = torch.from_numpy(reference_logits(model, ids[0].tolist())).float()
    assert (model(ids).logits[0] - expected).abs().max() > 0.1


def test_vocabulary_and_sizes_of_the_seed() -> None:
    """d20 and d32 of the original by their published parameter counts."""
    from nanochat import NanoChatConfig

    for depth, expected in ((20, 560_988_160), (32, 1_879_048_192)):
        config = NanoChatConfig(
            vocab_size=65536,
            hidden_size=64 * depth,
            intermediate_size=None,
            num_hidden_layers=depth,
            num_attention_heads=depth // 2,
        )
        with torch.device("meta"):
            model = NanoChatForCausalLM(config)
        assert model.num_parameters() == expected
        assert len(model.state_dict()) == 6 * depth + 2
