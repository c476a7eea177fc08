"""The recipe: everything that `--depth` decides about a training run, each value open to change."""

import dataclasses
import math
from typing import Any

from nanochat.common import UserError
from nanochat.model.accounting import flops_per_token, parameter_counts
from nanochat.model.configuration import NanoChatConfig
from nanochat.training.machine import Machine, this_machine


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One stage of training, complete: the model's shape, the horizon, the batch, the optimizer.

    Attributes:
        depth: layers of the model.
        hidden_size, num_attention_heads, vocab_size, seq_len: the rest of its shape; seq_len is also its context.
        tokens: how many tokens the stage sees.
        batch_tokens: tokens of one optimizer step.
        micro_batch_tokens: tokens of one forward and backward pass; gradients add up to the batch.
        matrix_lr, embedding_lr, head_lr: peak learning rates of Muon (block matrices) and AdamW.
        weight_decay: decoupled, of the block matrices.
        warmup_steps: steps over which the rates rise.
        decay_fraction: the last part of the steps, over which they fall linearly to `final_lr_fraction` of the peak.
        seed: of the initial weights and the order of the data.
        dtype: "bfloat16" (autocast over fp32 weights) or "float32".
        within_documents: whether attention in pretraining stops where a document begins. On a CPU, where it costs
            nothing, it does (docs/log.md); on a GPU its mask would cost the fast attention.
    """

    depth: int
    hidden_size: int
    num_attention_heads: int
    vocab_size: int
    seq_len: int
    tokens: int
    batch_tokens: int
    micro_batch_tokens: int
    matrix_lr: float
    embedding_lr: float
    head_lr: float
    weight_decay: float
    warmup_steps: int
    decay_fraction: float
    final_lr_fraction: float
    seed: int
    dtype: str
    within_documents: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _check(name, value)
        if self.batch_tokens % self.seq_len:
            raise UserError(
                f"batch_tokens must be a multiple of seq_len = {self.seq_len} (whole rows), got {self.batch_tokens}; "
                f"try {-(-self.batch_tokens // self.seq_len) * self.seq_len}."
            )

    @classmethod
    def from_depth(cls, depth: int, vocab_size: int, machine: Machine | None = None, **chosen: Any) -> "Recipe":
        """The recipe for a model of `depth` layers; `chosen` values replace computed ones, `None` leaves them.

        The dtype and the micro-batch are what fits `machine`: this one, unless another is given.

        Width 64 per layer, rounded up to whole heads of 128; horizon 10 tokens per weight that multiplies
        (matrices + head); the batch grows with the horizon but leaves some 1,000 steps to small runs.

        Raises:
            UserError: for values that no run can have.
        """
        chosen = {name: value for name, value in chosen.items() if value is not None}
        for name, value in {"depth": depth, "vocab_size": vocab_size, **chosen}.items():
            _check(name, value)
        machine = machine or this_machine()
        hidden_size = -(-64 * depth // 128) * 128
        seq_len = chosen.get("seq_len", min(2048, 128 * depth))
        scaling_parameters = 12 * depth * hidden_size**2 + vocab_size * hidden_size
        tokens = chosen.get("tokens", 10 * scaling_parameters)
        batch_tokens = chosen.get("batch_tokens", _batch_tokens(tokens, seq_len))
        if "tokens" not in chosen:
            tokens = max(1, tokens // batch_tokens) * batch_tokens
        # Rates found at depth 4 (docs/log.md); those of AdamW fall with the root of the width, as in the original.
        width_factor = (hidden_size / 256) ** -0.5
        computed = {
            "seq_len": seq_len,
            "tokens": tokens,
            "batch_tokens": batch_tokens,
            "micro_batch_tokens": batch_tokens,
            "matrix_lr": 0.02,
            "embedding_lr": 0.3 * width_factor,
            "head_lr": 0.008 * width_factor,
            "weight_decay": 0.0,
            "warmup_steps": min(40, max(1, tokens // batch_tokens // 20)),
            "decay_fraction": 0.65,
            "final_lr_fraction": 0.05,
            "seed": 0,
            "dtype": "float32",
            "within_documents": machine.device == "cpu",
        }
        recipe = cls(
            depth=depth,
            hidden_size=hidden_size,
            num_attention_heads=hidden_size // 128,
            vocab_size=vocab_size,
            **{**computed, **chosen},
        )
        if {"dtype", "micro_batch_tokens"} <= chosen.keys():
            return recipe
        dtype = chosen.get("dtype", machine.dtype)
        fitting = machine.micro_batch_tokens(recipe.config(), seq_len, batch_tokens, dtype)
        return dataclasses.replace(recipe, dtype=dtype, micro_batch_tokens=chosen.get("micro_batch_tokens", fitting))

    def with_micro_batch(self, tokens: int | None) -> "Recipe":
        """The same recipe with micro-batches of so many tokens, which changes rounding only; `None` leaves them."""
        return self if tokens is None else dataclasses.replace(self, micro_batch_tokens=tokens)

    @property
    def steps(self) -> int:
        """Optimizer steps: whole batches until `tokens` are seen."""
        return -(-self.tokens // self.batch_tokens)

    @property
    def batch_size(self) -> int:
        """Rows of `seq_len` tokens in one optimizer step."""
        return self.batch_tokens // self.seq_len

    def config(self) -> NanoChatConfig:
        """The model's configuration."""
        return NanoChatConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=4 * self.hidden_size,
            num_hidden_layers=self.depth,
            num_attention_heads=self.num_attention_heads,
            max_position_embeddings=self.seq_len,
        )

    def flops(self, config: NanoChatConfig) -> int:
        """Floating-point operations of the whole stage, for a model of this configuration."""
        return flops_per_token(config, self.seq_len) * self.steps * self.batch_tokens

    def summary(self, config: NanoChatConfig) -> str:
        """The recipe in two lines for people."""
        counts = parameter_counts(config)
        return (
            f"depth {self.depth}, width {self.hidden_size}, {self.num_attention_heads} heads, vocabulary "
            f"{self.vocab_size}: {counts['total'] / 1e6:.1f} M parameters, {counts['matrices'] / 1e6:.1f} M in blocks\n"
            f"{self.steps} steps of {self.batch_size} rows x {self.seq_len} tokens = "
            f"{self.steps * self.batch_tokens:,} tokens, {self.flops(config):.2e} FLOPs, {self.dtype}"
        )


def _check(name: str, value: Any) -> None:
    if name in ("depth", "vocab_size", "seq_len", "tokens", "batch_tokens", "micro_batch_tokens") and value < 1:
        raise UserError(f"{name} must be at least 1, got {value}.")
    if name in ("matrix_lr", "embedding_lr", "head_lr", "weight_decay") and not 0 <= value < math.inf:
        raise UserError(f"{name} must be a number of at least 0, got {value}.")
    if name == "seed" and not 0 <= value < 2**63:
        raise UserError(f"seed must be from 0 to 2**63 - 1, got {value}.")
    if name == "dtype" and value not in ("bfloat16", "float32"):
        raise UserError(f'dtype must be "bfloat16" or "float32", got {value!r}.')


def _batch_tokens(tokens: int, seq_len: int) -> int:
    rule = 2**19 * (tokens / 1e9) ** 0.383  # the original's exponent; about 2^19 tokens for its depth 12
    target = min(rule, max(2**12, tokens / 1000), 2**19)
    rows = 2 ** round(math.log2(target)) / seq_len
    return (8 * round(rows / 8) if rows >= 8 else max(1, round(rows))) * seq_len  # 2, 4 or 8 processes can share it
