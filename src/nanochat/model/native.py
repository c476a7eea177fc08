"""The model on the native decoder: which models it can run, and their weights in its formats."""

import torch
from torch import Tensor

from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.native.decoder import NativeDecoder, Shape, decoder_library
from nanochat.native.packing import BITS, GROUP, PANEL, pack

STATIC_ROPE = {"default", "linear", "llama3", "yarn"}  # frequencies that don't change with the length


def native_obstacle(model: NanoChatForCausalLM, format: str = "fp32") -> str | None:
    """Why the native decoder can't run a model in a format, as the end of a sentence; None if it can."""
    config = model.config
    multiple = GROUP if format in BITS else PANEL
    sizes = {
        "hidden_size": config.hidden_size,
        "the head size": config.hidden_size // config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
    }
    odd = [f"{name} is {size}" for name, size in sizes.items() if size % (PANEL if "head" in name else multiple)]
    if model.device.type != "cpu":
        return f"the model is on {model.device.type}"
    if config.hidden_act != "relu2":
        return f"hidden_act is {config.hidden_act}, not relu2"
    if config.attention_bias:
        return "the model has attention biases"
    if config.rope_parameters["rope_type"] not in STATIC_ROPE:
        return f"the rotary embedding's type is {config.rope_parameters['rope_type']}"
    if odd:
        return f"{' and '.join(odd)}, not a multiple of {multiple}"
    if decoder_library() is None:
        return "there is no C compiler, or NANOCHAT_NATIVE=0 forbids it"
    return None


def packed_weights(model: NanoChatForCausalLM, format: str) -> list[Tensor]:
    """All matrices in a format of the native decoder: per layer q, k and v together, o, fc1, fc2; then the head."""
    packed = []
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        packed += [pack(weight, format) for weight in (qkv, attention.o_proj.weight, mlp.fc1.weight, mlp.fc2.weight)]
    return [*packed, pack(model.lm_head.weight, format)]


def native_decoder(
    model: NanoChatForCausalLM, format: str, weights: list[Tensor], pages: int, threads: int
) -> NativeDecoder:
    """The native decoder with a model's packed weights and room for `pages` pages of 16 positions."""
    config, rotary = model.config, model.model.rotary_emb
    shape = Shape(
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        mlp_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        eps=config.rms_norm_eps,
        softcap=config.final_logit_softcapping,
        angle_scale=rotary.attention_scaling,
    )
    embedding = model.model.embed_tokens.weight.detach()
    if embedding.dtype not in (torch.float32, torch.bfloat16):
        embedding = embedding.float()
    return NativeDecoder(shape, format, weights, embedding, rotary.inv_freq.float(), pages, threads)
