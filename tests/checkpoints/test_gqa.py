"""MHA to GQA by mean-pooling: exact where the pooled heads agree, and the mean of the projections always."""

import pytest
import torch

from nanochat import NanoChatConfig, NanoChatForCausalLM
from nanochat.checkpoints.gqa import to_grouped_query
from nanochat.common import UserError

HEAD = 8  # hidden_size 32, 4 heads


def tiny_model(heads: int = 4, **options: object) -> NanoChatForCausalLM:
    torch.manual_seed(0)
    options = {"attention_bias": True, "initializer_range": 0.3} | options
    model = NanoChatForCausalLM(
        NanoChatConfig(
            vocab_size=50,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=heads,
            **options,  # type: ignore[arg-type]
        )
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


@pytest.mark.parametrize("heads, groups", [(4, 4), (4, 2), (4, 1), (2, 1)])
def test_each_new_head_is_the_mean_of_its_group(heads: int, groups: int) -> None:
    model = tiny_model(heads)
    pooled = to_grouped_query(model, groups)
    assert pooled.config.num_key_value_heads == groups
    assert model.config.num_key_value_heads == heads
    size = heads // groups
    for name, tensor in model.state_dict().items():
        new = pooled.state_dict()[name]
        if "k_proj" in name or "v_proj" in name:
            for group in range(groups):
                members = [tensor[h * HEAD : (h + 1) * HEAD] for h in range(group * size, (group + 1) * size)]
                torch.testing.assert_close(new[group * HEAD : (group + 1) * HEAD], sum(members) / size)
        else:
            assert torch.equal(new, tensor), name


@pytest.mark.parametrize("groups", [2, 1])
def test_pooling_equal_heads_keeps_the_logits(groups: int) -> None:
    grouped = tiny_model(groups)
    model = tiny_model(4)
    expanded = {
        name: tensor.unflatten(0, (groups, HEAD)).repeat_interleave(4 // groups, 0).flatten(0, 1)
        if "k_proj" in name or "v_proj" in name
        else tensor
        for name, tensor in grouped.state_dict().items()
    }
    model.load_state_dict(expanded)
    ids = torch.arange(12)[None]
    pooled = to_grouped_query(model, groups)
    torch.testing.assert_close(pooled(ids).logits, model(ids).logits, atol=1e-5, rtol=0)


def test_the_new_model_is_independent_and_of_the_same_kind() -> None:
    model = tiny_model(4, tie_word_embeddings=True).to(torch.bfloat16).eval()  # type: ignore[arg-type]
    model.generation_config.max_new_tokens = 3
    pooled = to_grouped_query(model, 2)
    assert {parameter.dtype for parameter in pooled.parameters()} == {torch.bfloat16}
    assert not pooled.training
    assert pooled.lm_head.weight is pooled.model.embed_tokens.weight
    assert pooled.generation_config.max_new_tokens == 3
    before = model(torch.arange(5)[None]).logits
    with torch.no_grad():
        for parameter in pooled.parameters():
            parameter.zero_()
    assert torch.equal(model(torch.arange(5)[None]).logits, before)
    assert all(parameter.requires_grad for parameter in pooled.parameters())


@pytest.mark.parametrize("groups", [3, 0, -1, 8])
def test_impossible_groups(groups: int) -> None:
    with pytest.raises(UserError, match=rf"4 key/value heads can't be pooled into {groups} groups.*\[1, 2, 4\]"):
        to_grouped_query(tiny_model(4), groups)
