"""The NanoChat model: a small Llama relative, whole in this file.

    embed → norm → L × [x += attention(norm x); x += mlp(norm x)] → norm → lm_head → c · tanh(· / c)

RMSNorm has no weights; queries and keys are rotated first and normed after; the MLP is relu squared.

Shapes: B batch, T time (query positions), S key positions, C hidden size, H query heads, K key/value heads,
D head dimension, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin, GenerationMode
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from nanochat.model.configuration import NanoChatConfig


class NanoChatRMSNorm(nn.Module):
    """x / rms(x) over the last dimension, computed in fp32, without weights (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, eps: float = 1e-6):
        super().__init__()
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        return F.rms_norm(hidden_states.float(), hidden_states.shape[-1:], eps=self.eps).type_as(hidden_states)

    def extra_repr(self) -> str:
        return f"eps={self.eps}"


class NanoChatRotaryEmbedding(nn.Module):
    """Cosines and sines of the rotary embedding, (B, T, D) each, from positions (B, T); angles in fp32.

    The attribute names are those of Transformers' rotary modules: `dynamic_rope_update` and the weight
    initialisation (which refills the buffers of a model built on the meta device) go by them.
    """

    inv_freq: Tensor

    def __init__(self, config: NanoChatConfig):
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        initialise = ROPE_INIT_FUNCTIONS.get(self.rope_type, self.compute_default_rope_parameters)
        inv_freq, self.attention_scaling = initialise(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: NanoChatConfig, **kwargs: Any) -> tuple[Tensor, float]:
        """Inverse frequencies theta^(-2i/D), shape (D/2,), and the scaling of cos and sin, 1."""
        head_dim = config.hidden_size // config.num_attention_heads
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        return 1.0 / config.rope_parameters["rope_theta"] ** exponents, 1.0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        # Seen as bytes, the buffers follow the model to another device but not to another dtype: in bfloat16 the
        # frequencies are so coarse that angles at position 1000 are off by radians.
        return super()._apply(lambda buffer: fn(buffer.view(torch.uint8)).view(buffer.dtype), recurse)

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].float() * self.inv_freq.to(x.device, torch.float32)  # (B, T, D/2)
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def rotate_by_minus_theta(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[i], x[i + D/2]) of every head by minus theta: x (B, H, T, D), cos and sin (B, T, D).

    Most models rotate by plus theta. This function stays private to the model and out of reach of Transformers'
    kernel substitution, whose rotary kernels would turn the other way.
    """
    x1, x2 = x.chunk(2, dim=-1)
    return x * cos.unsqueeze(1) + torch.cat((x2, -x1), dim=-1) * sin.unsqueeze(1)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Plain attention that can show its weights: query (B, H, T, D), key and value (B, K, S, D).

    Returns the output (B, T, H, D) and the weights (B, H, T, S); softmax in fp32.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class NanoChatAttention(nn.Module):
    """Causal self-attention: project, rotate, norm queries and keys, attend, project back."""

    def __init__(self, config: NanoChatConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True

        C, key_width = config.hidden_size, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(C, C, bias=config.attention_bias)
        self.k_proj = nn.Linear(C, key_width, bias=config.attention_bias)
        self.v_proj = nn.Linear(C, key_width, bias=config.attention_bias)
        self.o_proj = nn.Linear(C, C, bias=config.attention_bias)
        self.q_norm = NanoChatRMSNorm(eps=config.rms_norm_eps)
        self.k_norm = NanoChatRMSNorm(eps=config.rms_norm_eps)

    def forward(
        self,
        hidden_states: Tensor,  # (B, T, C)
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        B, T, _ = hidden_states.shape
        # The head count is left to view(): under tensor parallelism each rank holds a part of the heads.
        query = self.q_proj(hidden_states).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, H, T, D)
        key = self.k_proj(hidden_states).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, K, T, D)
        value = self.v_proj(hidden_states).view(B, T, -1, self.head_dim).transpose(1, 2)

        query = self.q_norm(rotate_by_minus_theta(query, *position_embeddings))
        key = self.k_norm(rotate_by_minus_theta(key, *position_embeddings))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)

        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(B, T, -1).contiguous()), weights


class NanoChatMLP(nn.Module):
    """fc1 → relu² → fc2 (https://arxiv.org/abs/2109.08668)."""

    def __init__(self, config: NanoChatConfig):
        super().__init__()
        self.squares = config.hidden_act == "relu2"
        self.activation_fn = ACT2FN[config.hidden_act] if isinstance(config.hidden_act, str) else config.hidden_act
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.fc1(hidden_states)
        if self.squares and hidden_states.dtype == torch.float16:
            raise ValueError(
                "float16 can't run NanoChat: relu² of 300 is 90,000, past its largest number 65,504, and the output "
                "silently becomes inf. Load the model with dtype=torch.bfloat16 or torch.float32."
            )
        return self.fc2(self.activation_fn(hidden_states))


class NanoChatDecoderLayer(GradientCheckpointingLayer):
    """One block: attention and MLP, each on the normalised stream (B, T, C) and added back to it."""

    def __init__(self, config: NanoChatConfig, layer_idx: int):
        super().__init__()
        self.self_attn = NanoChatAttention(config, layer_idx)
        self.mlp = NanoChatMLP(config)
        self.input_layernorm = NanoChatRMSNorm(eps=config.rms_norm_eps)
        self.post_attention_layernorm = NanoChatRMSNorm(eps=config.rms_norm_eps)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        attention_output, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + attention_output
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class NanoChatPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialising, as [`PreTrainedModel`] does it for every model."""

    config: NanoChatConfig
    config_class = NanoChatConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NanoChatDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": NanoChatDecoderLayer, "attentions": NanoChatAttention}

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: for code outside of its package Transformers would skip modules without weights of their own."""
        return False

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, NanoChatAttention):
            # 2L additions to the residual stream: keep its variance independent of the depth.
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            init.normal_(module.o_proj.weight, mean=0.0, std=std)


class NanoChatModel(NanoChatPreTrainedModel):
    """The decoder without the output head: token ids in, hidden states out."""

    def __init__(self, config: NanoChatConfig):
        super().__init__(config)
        # No padding_idx: it would freeze that row at zero, and with it every token that shares the pad id.
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([NanoChatDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = NanoChatRMSNorm(eps=config.rms_norm_eps)
        self.rotary_emb = NanoChatRotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        cache_position: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: token ids, (B, T). Either these or `inputs_embeds`.
            attention_mask: (B, past + T), 1 to attend and 0 for padding; or a ready 4D mask.
            position_ids: positions, (B, T) or (1, T); `past ... past + T - 1` unless given. Positions that start
                anew within a row pack several sequences: with no mask and no cache given, each attends to itself.
            past_key_values: keys and values of earlier tokens; the input is then the tokens after them.
            inputs_embeds: embeddings instead of ids, (B, T, C).
            cache_position: (T,), positions of the input in the cache; used for `position_ids` when those are absent.
            use_cache: return the cache (a new [`DynamicCache`] when none is given).
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict` and what an attention
                implementation takes.

        Returns:
            `last_hidden_state` (B, T, C), `past_key_values`, and if asked `hidden_states` (L + 1 of (B, T, C), the
            last one after the final norm) and `attentions` (L of (B, H, T, S), eager attention only).

        Raises:
            ValueError: if not exactly one of `input_ids` and `inputs_embeds` is given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        assert inputs_embeds is not None
        if position_ids is None and cache_position is not None:
            position_ids = cache_position.unsqueeze(0)

        # The mask first: a fresh, empty cache changes nothing in it but would hide packed position_ids from it.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past_length
            position_ids = position_ids.unsqueeze(0)

        position_embeddings = self.rotary_emb(inputs_embeds, position_ids=position_ids)
        hidden_states = self.norm(inputs_embeds)
        for layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = layer(
                hidden_states,
                attention_mask=mask,
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


def softcap(logits: Tensor, cap: float | None) -> Tensor:
    """c * tanh(logits / c) in fp32 (https://arxiv.org/abs/2408.00118, §2); `None` only casts to fp32."""
    logits = logits.float()
    return logits if cap is None else cap * torch.tanh(logits / cap)


def next_token_loss(
    logits: Tensor,
    labels: Tensor | None,
    vocab_size: int,
    num_items_in_batch: Tensor | int | None = None,
    ignore_index: int = -100,
    shift_labels: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """Cross-entropy of fp32 logits (B, T, V) at t with the label at t + 1, in nats per counted token.

    Labels (B, T) equal to `ignore_index` do not count. The sum is divided by `num_items_in_batch` where given
    (gradient accumulation: the count of the whole global batch), else by the number of counted labels, or by 1
    when there is none: a batch without any trained token costs nothing instead of NaN. `shift_labels` are labels
    already aligned with the logits.
    """
    if shift_labels is None:
        assert labels is not None
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    shift_labels = shift_labels.reshape(-1).to(logits.device)
    total = F.cross_entropy(logits.view(-1, vocab_size), shift_labels, ignore_index=ignore_index, reduction="sum")
    if num_items_in_batch is None:
        num_items_in_batch = (shift_labels != ignore_index).sum().clamp(min=1)
    elif isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch


class NanoChatForCausalLM(NanoChatPreTrainedModel, GenerationMixin):
    """The decoder with its output head: next-token logits, the loss, and `generate`."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}  # type: ignore[dict-item]
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: NanoChatConfig):
        super().__init__(config)
        self.model = NanoChatModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.loss_function = next_token_loss
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the model; arguments as [`NanoChatModel.forward`] and:

        Args:
            labels: (B, T), usually the `input_ids` themselves: the shift by one happens here. -100 is not trained on.
            logits_to_keep: only the last so many positions get logits (0: all of them); or a 1D tensor of positions.
            **kwargs: also `num_items_in_batch` and `shift_labels` for the loss.

        Returns:
            `loss` (scalar, fp32, with `labels`), `logits` (B, kept positions, V) in fp32 after the soft-cap,
            `past_key_values`, `hidden_states`, `attentions`.

        ```python
        >>> from transformers import AutoModelForCausalLM, AutoTokenizer
        >>> model = AutoModelForCausalLM.from_pretrained("runs/demo/chat")
        >>> tokenizer = AutoTokenizer.from_pretrained("runs/demo/chat")
        >>> conversation = [{"role": "user", "content": "What is the capital of France?"}]
        >>> inputs = tokenizer.apply_chat_template(
        ...     conversation, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ... )
        >>> outputs = model.generate(**inputs, max_new_tokens=64, do_sample=False)
        >>> tokenizer.decode(outputs[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        'The capital of France is Paris.'
        ```
        """
        if hasattr(past_key_values, "logits"):  # a NativeCache, which `generate` chose: it computes by itself
            assert isinstance(logits_to_keep, int)
            logits = past_key_values.logits(input_ids, attention_mask, logits_to_keep)
            return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            cache_position=cache_position,
            use_cache=use_cache,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = softcap(self.lm_head(outputs.last_hidden_state[:, kept, :]), self.config.final_logit_softcapping)
        loss = None
        if labels is not None or kwargs.get("shift_labels") is not None:
            loss = self.loss_function(logits, labels, self.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """Transformers' hook: what `generate` keeps keys and values in. On a CPU the native decoder does, if it can."""
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )
        if given is not None:  # whoever gives a cache wants it filled
            return
        from nanochat.model.generation import native_cache  # it needs this file

        cache = native_cache(self, generation_config, model_kwargs, generation_mode, max_cache_length)
        if cache is not None:
            model_kwargs["past_key_values"] = cache


AutoModel.register(NanoChatConfig, NanoChatModel, exist_ok=True)
AutoModelForCausalLM.register(NanoChatConfig, NanoChatForCausalLM, exist_ok=True)
