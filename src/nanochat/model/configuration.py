"""The configuration of a NanoChat model: the parameters of the Transformers page, checked."""

import os
from collections.abc import Callable
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters


@strict
class NanoChatConfig(PreTrainedConfig):
    """Configuration of [`NanoChatModel`] and [`NanoChatForCausalLM`].

    Args:
        vocab_size: number of tokens, the rows of the embedding and of the output head.
        hidden_size: width of the residual stream.
        intermediate_size: width of the MLP; `None` computes `4 * hidden_size`.
        num_hidden_layers: number of decoder layers.
        num_attention_heads: number of query heads; must divide `hidden_size` into heads of even size.
        num_key_value_heads: number of key/value heads; must divide `num_attention_heads`. `None` means as many
            (MHA), 1 is MQA, between is GQA (https://arxiv.org/abs/2305.13245).
        max_position_embeddings: longest sequence the model is meant for, in tokens.
        hidden_act: activation of the MLP, a name in `transformers.activations.ACT2FN` or a function.
        attention_dropout: dropout of the attention probabilities while training, 0 to 1.
        rms_norm_eps: epsilon of every RMSNorm.
        initializer_range: standard deviation of freshly initialised matrices.
        rope_parameters: rotary embedding; `{"rope_theta": 10000.0, "rope_type": "default"}` unless given. Any rope
            type of Transformers (linear, dynamic, yarn, longrope, llama3) with its parameters. A bare
            `rope_theta=` is put in here.
        use_cache: return the key/value cache by default.
        final_logit_softcapping: logits become `c * tanh(logits / c)`; `None` leaves them as they are.
        attention_bias: add a bias to the query, key, value and output projections.
        bos_token_id, eos_token_id, pad_token_id: ids within the vocabulary (`eos_token_id` may be a list;
            `None` where there is no such token).
        tie_word_embeddings: share one matrix between embedding and output head.

    Raises:
        ValueError: for a value that no model can have; the message names it and the remedy.

    ```python
    >>> from nanochat import NanoChatConfig, NanoChatModel
    >>> configuration = NanoChatConfig()
    >>> model = NanoChatModel(configuration)
    >>> configuration = model.config
    ```
    """

    model_type = "nanochat"
    keys_to_ignore_at_inference = ["past_key_values"]

    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.fc1": "colwise",
        "layers.*.mlp.fc2": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 50304
    hidden_size: int = 768
    intermediate_size: int | None = 8192
    num_hidden_layers: int = 12
    num_attention_heads: int = 6
    num_key_value_heads: int | None = None
    max_position_embeddings: int = 2048
    hidden_act: str | Callable = "relu2"
    attention_dropout: float | int = 0.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    rope_parameters: RopeParameters | dict | None = None
    use_cache: bool = True
    final_logit_softcapping: float | int | None = 15.0
    attention_bias: bool = False
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    pad_token_id: int | None = 1
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        head_dim = kwargs.pop("head_dim", None)
        self._check_sizes()
        if head_dim not in (None, self.hidden_size // self.num_attention_heads):
            raise ValueError(
                f"head_dim is hidden_size / num_attention_heads in NanoChat, here "
                f"{self.hidden_size // self.num_attention_heads}, got {head_dim}; leave it out."
            )
        self._check_ids()
        # A copy, because Transformers writes its defaults into the dictionary; `rope_scaling` is its old name.
        self.rope_parameters = dict(kwargs.pop("rope_scaling", None) or self.rope_parameters or {})
        super().__post_init__(**kwargs)
        self._check_rope()

    def _check_sizes(self) -> None:
        positive = (
            "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
            "max_position_embeddings rms_norm_eps"
        )
        for name in positive.split():
            if not getattr(self, name) > 0:  # NaN is not, either
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads must divide hidden_size, got {self.num_attention_heads} heads for a width of "
                f"{self.hidden_size}; try hidden_size={_next_multiple(self.hidden_size, self.num_attention_heads)}."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            divisors = [n for n in range(1, self.num_attention_heads + 1) if self.num_attention_heads % n == 0]
            raise ValueError(
                f"num_key_value_heads must divide num_attention_heads={self.num_attention_heads}, got "
                f"{self.num_key_value_heads}; use one of {divisors}."
            )
        if (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"Rotary embeddings need an even head size, got hidden_size / num_attention_heads = "
                f"{self.hidden_size} / {self.num_attention_heads} = {self.hidden_size // self.num_attention_heads}; "
                f"use hidden_size={_next_multiple(self.hidden_size, 2 * self.num_attention_heads)}."
            )
        if isinstance(self.hidden_act, str) and self.hidden_act not in ACT2FN:
            raise ValueError(f"Unknown hidden_act {self.hidden_act!r}; use one of {', '.join(sorted(ACT2FN))}.")
        if not 0 <= self.attention_dropout <= 1:
            raise ValueError(f"attention_dropout must be between 0 and 1, got {self.attention_dropout}.")
        if not self.initializer_range >= 0:
            raise ValueError(f"initializer_range must not be negative, got {self.initializer_range}.")
        if self.final_logit_softcapping is not None and not self.final_logit_softcapping > 0:
            raise ValueError(
                f"final_logit_softcapping must be positive, got {self.final_logit_softcapping}; "
                "use None for no soft-cap."
            )

    def _check_ids(self) -> None:
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = getattr(self, name)
            for token_id in value if isinstance(value, list) else [value]:
                if token_id is not None and not 0 <= token_id < self.vocab_size:
                    raise ValueError(
                        f"{name} must be within the vocabulary, 0 to {self.vocab_size - 1}, got {token_id}; "
                        "raise vocab_size or use None."
                    )

    def _check_rope(self) -> None:
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # needs torch

        rope_type = self.rope_parameters["rope_type"]
        if rope_type != "default" and rope_type not in ROPE_INIT_FUNCTIONS:
            known = ", ".join(["default", *sorted(ROPE_INIT_FUNCTIONS)])
            raise ValueError(f"Unknown rope_type {rope_type!r} in rope_parameters; use one of {known}.")
        theta = self.rope_parameters["rope_theta"]
        if theta is None or theta <= 0:
            raise ValueError(f"rope_theta must be positive, got {theta}.")
        if self.rope_parameters.get("partial_rotary_factor", 1.0) != 1.0:
            raise ValueError(
                "NanoChat rotates whole heads: partial_rotary_factor must be left out or 1.0, got "
                f"{self.rope_parameters['partial_rotary_factor']}."
            )
        try:
            self.validate_rope()
        except KeyError as error:
            raise ValueError(f"{error.args[0]}; add them.") from error

    def to_dict(self) -> dict[str, Any]:
        """The configuration as a dictionary for JSON; a `hidden_act` function appears by its name."""
        result = super().to_dict()
        if callable(self.hidden_act):
            result["hidden_act"] = getattr(self.hidden_act, "__name__", repr(self.hidden_act))
        return result

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Write `config.json` to the folder.

        Raises:
            ValueError: when `hidden_act` is a function, which a JSON file can't hold.
        """
        if callable(self.hidden_act):
            raise ValueError(
                f"hidden_act is the function {self.hidden_act!r}, which config.json can't hold; set "
                "config.hidden_act to a name in transformers.activations.ACT2FN before saving."
            )
        super().save_pretrained(save_directory, *args, **kwargs)


def _next_multiple(value: int, factor: int) -> int:
    return -(-value // factor) * factor


AutoConfig.register("nanochat", NanoChatConfig, exist_ok=True)
