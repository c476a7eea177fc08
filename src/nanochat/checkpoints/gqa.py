"""From multi-head to grouped-query attention: fewer key/value heads, a smaller cache."""

import copy

from torch import Tensor

from nanochat.common import UserError
from nanochat.model.modeling import NanoChatForCausalLM


def to_grouped_query(model: NanoChatForCausalLM, num_key_value_heads: int) -> NanoChatForCausalLM:
    """A new model whose key and value heads are the means of the old ones, group by group.

    As https://arxiv.org/abs/2305.13245 §2.1 does it: the projections (weights and biases) are averaged over the heads
    of each group. Keys are rotated and normed after the projection. Rotation is linear, so it may come after the mean;
    the norm is not, so the result is a good starting point for a short training, not the same model.
    Query, output and all other weights are copied; dtype, device and mode are those of `model`.

    Raises:
        UserError: if `num_key_value_heads` does not divide the model's number of key/value heads.
    """
    config = copy.deepcopy(model.config)
    heads = config.num_key_value_heads or config.num_attention_heads
    if num_key_value_heads < 1 or heads % num_key_value_heads:
        divisors = [n for n in range(1, heads + 1) if heads % n == 0]
        raise UserError(
            f"{heads} key/value heads can't be pooled into {num_key_value_heads} groups of equal size; "
            f"use one of {divisors}."
        )
    config.num_key_value_heads = num_key_value_heads

    def pool(projection: Tensor) -> Tensor:  # (heads · D, …) to (groups · D, …)
        grouped = projection.detach().unflatten(0, (num_key_value_heads, heads // num_key_value_heads, -1))
        return grouped.float().mean(dim=1).flatten(0, 1).to(projection.dtype)

    pooled = {
        name: pool(tensor) if "k_proj" in name or "v_proj" in name else tensor.detach().clone()
        for name, tensor in model.state_dict().items()
    }
    grouped_model = NanoChatForCausalLM(config)
    grouped_model.load_state_dict(pooled, assign=True)  # assign: takes the dtype over, and leaves rotary buffers fp32
    grouped_model.tie_weights()
    grouped_model.generation_config = copy.deepcopy(model.generation_config)
    grouped_model.to(model.device)  # type: ignore[arg-type]
    return grouped_model.train(model.training)
