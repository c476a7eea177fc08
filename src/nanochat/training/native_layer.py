"""A decoder layer for training on a CPU, its way back written out by hand.

The same mathematics as `NanoChatDecoderLayer`, in a dozen matrix products and the kernels of `nanochat.native` between
them. Autograd would keep every intermediate result and go over memory once per operator; here the way back keeps
seven tensors and makes the rest again.

Shapes: B batch, T time, C hidden size, H query heads, K key/value heads, D head dimension, N = B T.
"""

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanochat.model.modeling import NanoChatDecoderLayer, NanoChatForCausalLM
from nanochat.native import Kernels, kernels

# Queries whose scores with all earlier keys are held at a time: fewer skip more of what is masked, but the products of
# bf16 then lose more than that (docs/log.md).
QUERY_BLOCK = {torch.bfloat16: 512, torch.float32: 256}


def use_native_layers(model: NanoChatForCausalLM) -> bool:
    """Let the decoder layers of a model on a CPU train by this file; False where it can't be: they stay as they are.

    It takes a C compiler, relu squared, no biases, no dropout. Generation with a cache goes the usual way.
    """
    config = model.config
    plain = config.hidden_act == "relu2" and not config.attention_bias and not config.attention_dropout
    run = kernels()
    if run is None or not plain or model.device.type != "cpu":
        return False
    for layer in model.model.layers:
        layer.forward = types.MethodType(_forward_of(run), layer)
    return True


def _forward_of(run: Kernels) -> Callable[..., Tensor]:
    def forward(
        self: NanoChatDecoderLayer,
        hidden_states: Tensor,  # (B, T, C)
        position_embeddings: tuple[Tensor, Tensor],
        position_ids: Tensor,  # (B or 1, T), from 0 in each document
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        if past_key_values is not None:
            return type(self).forward(
                self, hidden_states, position_embeddings=position_embeddings, position_ids=position_ids,
                past_key_values=past_key_values, **kwargs,
            )  # fmt: skip
        attention, mlp = self.self_attn, self.mlp
        starts = (torch.arange(position_ids.shape[1]) - position_ids).int()
        autocast = torch.is_autocast_enabled("cpu")
        return _Layer.apply(
            run,
            torch.get_autocast_dtype("cpu") if autocast else hidden_states.dtype,
            (attention.head_dim, attention.scaling, attention.q_norm.eps),
            hidden_states.float().contiguous(),
            *(angles.float().contiguous() for angles in position_embeddings),
            starts,
            attention.q_proj.weight,
            attention.k_proj.weight,
            attention.v_proj.weight,
            attention.o_proj.weight,
            mlp.fc1.weight,
            mlp.fc2.weight,
        )

    return forward


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, run: Kernels, dtype: torch.dtype, constants: tuple[int, float, float],
        x: Tensor, cos: Tensor, sin: Tensor, starts: Tensor, *weights: Tensor,
    ) -> Tensor:  # fmt: skip
        step = _Step(run, dtype, constants, x.shape, cos, sin, starts)
        w_q, w_k, w_v, w_o, w_1, w_2 = (weight.detach().to(dtype) for weight in weights)
        y = step.norm(x)  # (N, C)
        q, k, v, inverse = step.rotate_norm(y @ torch.cat((w_q, w_k, w_v)).T)
        o = step.attention(q, k, v)  # (N, H D)
        middle, y = step.add_norm(x, o @ w_o.T)
        h = y @ w_1.T
        ctx.step = step
        ctx.save_for_backward(x, q, k, v, inverse, o, h, *weights)
        return middle + (step.relu_squared(h) @ w_2.T).view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        step: _Step = ctx.step
        x, q, k, v, inverse, o, h, *weights = ctx.saved_tensors
        w_q, w_k, w_v, w_o, w_1, w_2 = (weight.detach().to(step.dtype) for weight in weights)
        grad = gradients[0].contiguous().clone()  # (B, T, C) fp32, of the residual stream

        d = step.rounded(grad)  # (N, C), of the MLP's output
        grad_w_2 = d.T @ step.relu_squared(h)
        d = step.relu_squared_backward(h, d @ w_2)
        middle, y = step.add_norm(x, o @ w_o.T)
        grad_w_1 = d.T @ y
        step.norm_backward(middle, d @ w_1, grad)

        d = step.rounded(grad)  # (N, C), of the attention's output
        grad_w_o = d.T @ o
        d = step.rotate_norm_backward(*step.attention_backward(q, k, v, d @ w_o), q, k, inverse)
        grad_w_qkv = d.T @ step.norm(x)
        step.norm_backward(x, d @ torch.cat((w_q, w_k, w_v)), grad)

        grads = [*grad_w_qkv.split([len(w) for w in (w_q, w_k, w_v)]), grad_w_o, grad_w_1, grad_w_2]
        nothing = (None,) * 3  # for run, dtype, constants; and for the angles and the starts
        return *nothing, grad, *nothing, *(g.to(w.dtype) for g, w in zip(grads, weights))


class _Step:
    """The kernels as functions of tensors, for one layer and one batch."""

    def __init__(
        self, run: Kernels, dtype: torch.dtype, constants: tuple[int, float, float],
        shape: torch.Size, cos: Tensor, sin: Tensor, starts: Tensor,
    ):  # fmt: skip
        self.run, self.dtype = run, dtype
        self.D, self.scaling, self.eps = constants
        self.B, self.T, self.C = shape
        self.N = self.B * self.T
        self.cos, self.sin, self.starts = cos, sin, starts

    def norm(self, x: Tensor) -> Tensor:
        y = torch.empty(self.N, self.C, dtype=self.dtype)
        self.run("add_norm", self.dtype, x, None, None, y, self.N, self.C, self.eps)
        return y

    def add_norm(self, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        total, y = torch.empty_like(x), torch.empty(self.N, self.C, dtype=self.dtype)
        self.run("add_norm", self.dtype, x, added, total, y, self.N, self.C, self.eps)
        return total, y

    def norm_backward(self, x: Tensor, d: Tensor, grad: Tensor) -> None:
        self.run("norm_backward", self.dtype, x, d, grad, self.N, self.C, self.eps)

    def rounded(self, grad: Tensor) -> Tensor:
        return grad.view(self.N, self.C).to(self.dtype)

    def relu_squared(self, h: Tensor) -> Tensor:
        squared = torch.empty_like(h)
        self.run("relu_squared", self.dtype, h, squared, h.numel())
        return squared

    def relu_squared_backward(self, h: Tensor, d: Tensor) -> Tensor:
        self.run("relu_squared_backward", self.dtype, h, d, h.numel())
        return d

    def rotate_norm(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        H = self.C // self.D
        K = (qkv.shape[1] // self.D - H) // 2
        q, k, v = (torch.empty(self.B, heads, self.T, self.D, dtype=self.dtype) for heads in (H, K, K))
        inverse = torch.empty(self.N, H + K)
        sizes = (self.B, self.T, H, K, self.D, len(self.cos))
        self.run("rotate_norm", self.dtype, qkv, self.cos, self.sin, q, k, v, inverse, *sizes, self.eps)
        return q, k, v, inverse

    def rotate_norm_backward(
        self, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor, q: Tensor, k: Tensor, inverse: Tensor
    ) -> Tensor:
        H, K = q.shape[1], k.shape[1]
        grad_qkv = torch.empty(self.N, (H + 2 * K) * self.D, dtype=self.dtype)
        sizes = (self.B, self.T, H, K, self.D, len(self.cos))
        self.run(
            "rotate_norm_backward", self.dtype, grad_q, grad_k, grad_v, q, k, inverse, self.cos, self.sin, grad_qkv,
            *sizes,
        )  # fmt: skip
        return grad_qkv

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(N, H D) from q (B, H, T, D) and k, v (B, K, T, D)."""
        B, H, T, D = q.shape
        q, k, v = (_heads(tensor, H) for tensor in (q, k, v))
        o = torch.empty(B, T, H, D, dtype=self.dtype)
        block = QUERY_BLOCK[self.dtype]
        for first in range(0, T, block):
            last = min(T, first + block)
            scores = torch.bmm(q[:, first:last], k[:, :last].mT)  # (B H, R, S)
            self._softmax("causal_softmax", first, H, scores)
            o[:, first:last] = torch.bmm(scores, v[:, :last]).view(B, H, -1, D).transpose(1, 2)
        return o.view(self.N, H * D)

    def attention_backward(self, q: Tensor, k: Tensor, v: Tensor, grad_o: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of q, k and v from that of the attention's output, (N, H D)."""
        B, H, T, D = q.shape
        K = k.shape[1]
        d = grad_o.view(B, T, H, D).transpose(1, 2).reshape(B * H, T, D)
        q, k, v = (_heads(tensor, H) for tensor in (q, k, v))
        grad_q = torch.empty_like(q)
        grad_k = grad_v = torch.zeros(())
        # From the last block to the first, so that the longest one makes room for the others' sums.
        block = QUERY_BLOCK[self.dtype]
        for first in reversed(range(0, T, block)):
            last = min(T, first + block)
            scores = torch.bmm(q[:, first:last], k[:, :last].mT)  # (B H, R, S)
            grad = torch.bmm(d[:, first:last], v[:, :last].mT)
            self._softmax("causal_softmax_backward", first, H, scores, grad)
            part_k, part_v = torch.bmm(grad.mT, q[:, first:last]), torch.bmm(scores.mT, d[:, first:last])
            grad_q[:, first:last] = torch.bmm(grad, k[:, :last])
            if last == T:
                grad_k, grad_v = part_k, part_v
            else:
                grad_k[:, :last] += part_k
                grad_v[:, :last] += part_v
        if K != H:  # every key and value head served H / K query heads
            grad_k, grad_v = (g.view(B, K, H // K, T, D).sum(2) for g in (grad_k, grad_v))
        return grad_q, grad_k, grad_v

    def _softmax(self, name: str, first: int, heads: int, *scores: Tensor) -> None:
        sizes = (scores[0].shape[0], heads, *scores[0].shape[1:], first, self.T, len(self.starts))
        self.run(name, self.dtype, *scores, self.starts, *sizes, self.scaling)


def _heads(x: Tensor, heads: int) -> Tensor:
    """(B H, T, D) from (B, H or K, T, D)."""
    if x.shape[1] != heads:
        x = x.repeat_interleave(heads // x.shape[1], dim=1)
    return x.flatten(0, 1)
