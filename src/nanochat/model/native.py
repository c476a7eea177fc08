"""The model on the decoders of our own: which models they can run, and their weights in their formats."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nanochat.host import bfloat16_pays
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.native import has_triton
from nanochat.native.decoder import NativeDecoder, Shape, decoder_library
from nanochat.native.packing import BITS, GROUP, PANEL, pack, side_by_side

if TYPE_CHECKING:
    from nanochat.native.cuda import CudaDecoder

PLAIN_MODULES = ("transformers.activations", "nanochat.model.")
STATIC_ROPE = {"default", "linear", "llama3", "yarn"}  # frequencies that don't change with the length


def native_obstacle(model: NanoChatForCausalLM, format: str = "fp32") -> str | None:
    """Why the native decoder can't run a model in a format, as the end of a sentence; None if it can."""
    if model.device.type != "cpu":
        return f"the model is on {model.device.type}"
    if (obstacle := _obstacle(model, format)) is not None:
        return obstacle
    if decoder_library() is None:
        return "there is no C compiler, or NANOCHAT_NATIVE=0 forbids it"
    return None


def cuda_obstacle(model: NanoChatForCausalLM, format: str = "fp32") -> str | None:
    """Why the CUDA decoder can't run a model in a format, as the end of a sentence; None if it can."""
    head_dim = model.config.hidden_size // model.config.num_attention_heads
    if model.device.type != "cuda":
        return f"the model is on {model.device.type}"
    if (obstacle := _obstacle(model, format)) is not None:
        return obstacle
    if head_dim & (head_dim - 1):
        return f"the head size is {head_dim}, not a power of two"
    if not has_triton() or torch.version.cuda is None:
        return "Triton is not installed for an NVIDIA GPU"
    return None


def _obstacle(model: NanoChatForCausalLM, format: str) -> str | None:
    """What both decoders mind."""
    config = model.config
    multiple = GROUP if format in BITS else PANEL
    sizes = {
        "hidden_size": (config.hidden_size, multiple),
        "the head size": (config.hidden_size // config.num_attention_heads, PANEL),
        "intermediate_size": (config.intermediate_size, multiple),
    }
    odd = [f"{name} is {size}, not a multiple of {due}" for name, (size, due) in sizes.items() if size % due]
    if config.hidden_act != "relu2":
        return f"hidden_act is {config.hidden_act}, not relu2"
    if config.attention_bias:
        return "the model has attention biases"
    if config.rope_parameters["rope_type"] not in STATIC_ROPE:
        return f"the rotary embedding's type is {config.rope_parameters['rope_type']}"
    if (strange := _strange_module(model)) is not None:
        return strange
    return " and ".join(odd) or None


def _strange_module(model: NanoChatForCausalLM) -> str | None:
    """What an adapter, a quantizer or a hook has changed in a model: the native decoder would pass it by."""
    for name, module in model.named_modules():
        if not (
            type(module) in (nn.Linear, nn.Embedding, nn.ModuleList)
            or type(module).__module__.startswith(PLAIN_MODULES)
        ):
            return f"{name or 'the model'} is a {type(module).__name__}"
        forward = vars(module).get("forward")
        if module._forward_hooks or module._forward_pre_hooks or not _is_ours(forward):
            return f"{name or 'the model'} has a hook"
    return None


def _is_ours(forward: Any) -> bool:
    """Whether a module's own forward, if it has one, is the native layer of training: the same mathematics."""
    return forward is None or getattr(forward, "__module__", "").startswith("nanochat.")


def packed_weights(model: NanoChatForCausalLM, format: str) -> list[Tensor]:
    """All matrices in a format of the native decoder: per layer q, k and v together, o, fc1, fc2; then the head."""
    return side_by_side([pack(matrix, format) for matrix in (*_matrices(model), model.lm_head.weight)])


def weights_state(model: nn.Module) -> tuple[tuple[int, int], ...]:
    """Differs from what it was before if a weight has changed or moved since (in inference mode: moved)."""
    weights = model.parameters()
    return tuple((weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights)


def native_decoder(
    model: NanoChatForCausalLM, format: str, weights: list[Tensor], pages: int, threads: int
) -> NativeDecoder:
    """The native decoder with a model's packed weights and room for `pages` pages of 16 positions."""
    rotary = model.model.rotary_emb
    embedding = model.model.embed_tokens.weight.detach()
    if embedding.dtype not in (torch.float32, torch.bfloat16):
        embedding = embedding.float()
    fast = format == "bf16" and bfloat16_pays("cpu")
    matrices = [matrix.bfloat16() for matrix in _matrices(model)] if fast else None
    return NativeDecoder(_shape(model), format, weights, embedding, rotary.inv_freq.float(), pages, threads, matrices)


def cuda_decoder(model: NanoChatForCausalLM, format: str, pages: int, forbidden: Sequence[int]) -> "CudaDecoder":
    """The CUDA decoder with a model's weights and room for `pages` pages of 16 positions."""
    from nanochat.native.cuda import CudaDecoder  # it needs Triton

    return CudaDecoder(
        _shape(model),
        format,
        [*_matrices(model), model.lm_head.weight],
        model.model.embed_tokens.weight,
        model.model.rotary_emb.inv_freq.float(),
        model.config.max_position_embeddings,
        pages,
        forbidden,
    )


def _shape(model: NanoChatForCausalLM) -> Shape:
    config = model.config
    return Shape(
        layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        mlp_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        eps=config.rms_norm_eps,
        softcap=config.final_logit_softcapping,
        angle_scale=model.model.rotary_emb.attention_scaling,
    )


@torch.no_grad()
def _matrices(model: NanoChatForCausalLM) -> list[Tensor]:
    """The matrices (outputs, inputs) of all layers: per layer q, k and v together, o, fc1, fc2."""
    matrices = []
    for layer in model.model.layers[: model.config.num_hidden_layers]:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        matrices += [qkv, attention.o_proj.weight, mlp.fc1.weight, mlp.fc2.weight]
    return matrices
