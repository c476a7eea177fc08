"""The native decoder: `decoder.c` with a model's weights and a cache of keys and values in pages."""

import ctypes
import dataclasses
import functools
import itertools
from array import array
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanochat.native import library
from nanochat.native.packing import FORMATS, PANEL

PAGE = 16  # positions
MANY = 64  # tokens of a step from which on PyTorch's products are worth their overhead
ALONE = 2**20  # fewer multiplications than this in a step are done sooner by one thread than shared out
STRICT = ["-fno-math-errno", "-fno-trapping-math"]  # sums keep their order: results don't depend on the batch


@dataclasses.dataclass(frozen=True)
class Shape:
    """The numbers of a model; all but `vocab_size` are multiples of 16."""

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_size: int
    vocab_size: int
    eps: float
    softcap: float | None
    angle_scale: float


_PRODUCT = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)
_ADD, _SQUARE = 1, 2  # modes of a product


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layers", "C", "H", "K", "D", "hidden", "V")),
        *((name, ctypes.c_int64) for name in ("format", "cache_format", "embedding_format", "pages", "threads")),
        *((name, ctypes.c_float) for name in ("eps", "scale", "cap", "angle_scale")),
        *((name, ctypes.c_void_p) for name in ("weights", "embedding", "frequencies", "keys", "values")),
        ("product", _PRODUCT),
        ("many", ctypes.c_int64),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("N", "sequences", "kept", "table_width")),
        *((name, ctypes.c_void_p) for name in ("tokens", "starts", "lengths", "rows", "table", "logits")),
    ]


@functools.cache
def decoder_library() -> ctypes.CDLL | None:
    """`decoder.c`, built; None where it can't be."""
    return library("decoder.c", flags=STRICT)


class NativeDecoder:
    """Runs steps of a model on the CPU: new tokens of many sequences through all layers, in one call.

    A token's logits depend, to the bit, on nothing but the tokens before it: not on the batch, nor on how a prompt was
    cut into steps. Keys and values are kept in fp32 for fp32 weights, else in bf16.

    With `matrices`, steps of many tokens multiply by PyTorch in the dtype of these: where a processor has instructions
    for bf16 that is much faster, but what a chunk's tokens give then depends on its length, by rounding.
    """

    def __init__(
        self,
        shape: Shape,
        format: str,
        weights: Sequence[Tensor],  # packed: per layer qkv, o, fc1, fc2; then the head
        embedding: Tensor,  # (V, C) fp32 or bf16
        frequencies: Tensor,  # (D / 2) fp32
        pages: int,
        threads: int,
        matrices: Sequence[Tensor] | None = None,  # the weights (outputs, inputs) of the layers
    ):
        built = decoder_library()
        assert built is not None
        self._library = built
        self.shape, self.format, self.pages = shape, format, pages
        self.threads = threads
        self.weight_bytes = sum(weight.nbytes for weight in weights)
        kept = np.float32 if format == "fp32" else np.uint16
        size = (shape.layers, pages, shape.kv_heads, PAGE * shape.head_dim)
        self._keys, self._values = np.zeros(size, kept), np.zeros(size, kept)  # memory comes with the first use
        self._weights, self._embedding, self._frequencies = list(weights), embedding.contiguous(), frequencies
        pointers = (ctypes.c_void_p * len(weights))(*(weight.data_ptr() for weight in weights))
        self._pointers = pointers
        self._model = _Model(
            shape.layers, shape.hidden_size, shape.heads, shape.kv_heads, shape.head_dim, shape.mlp_size,
            shape.vocab_size, FORMATS.index(format), kept is not np.float32, embedding.dtype == torch.bfloat16, pages,
            threads, shape.eps, shape.head_dim**-0.5, shape.softcap or 0.0, shape.angle_scale,
            ctypes.addressof(pointers), self._embedding.data_ptr(), frequencies.data_ptr(), self._keys.ctypes.data,
            self._values.ctypes.data, self._product(matrices) if matrices else _PRODUCT(), MANY,
        )  # fmt: skip

    def step(
        self,
        tokens: Sequence[int],
        starts: Sequence[int],
        lengths: Sequence[int],
        tables: Sequence[Sequence[int]],
        rows: Sequence[int],
    ) -> Tensor:
        """Run new tokens and keep their keys and values; return the logits of some, (len(rows), V) fp32.

        Args:
            tokens: of all sequences, one after the other.
            starts: where each sequence's tokens begin in `tokens`, and at the end their number.
            lengths: how many positions of each sequence are filled after the step.
            tables: the pages of each sequence, in order.
            rows: positions in `tokens` whose logits are wanted.

        Raises:
            MemoryError: if there is none for intermediate results.
        """
        width = max(map(len, tables))
        numbers = array("q", [*tokens, *starts, *lengths, *rows])
        for pages in tables:
            numbers.extend([*pages, *[0] * (width - len(pages))])
        first, _ = numbers.buffer_info()
        at = [first + 8 * n for n in itertools.accumulate(map(len, (tokens, starts, lengths, rows)), initial=0)]
        V = self.shape.vocab_size
        logits = torch.empty(len(rows), -(-V // PANEL) * PANEL)
        batch = _Batch(len(tokens), len(tables), len(rows), width, *at, logits.data_ptr())
        self._model.threads = self.threads if len(tokens) * self.weight_bytes > ALONE else 1
        if self._library.decoder_step(ctypes.byref(self._model), ctypes.byref(batch)) != 0:
            raise MemoryError(f"no memory for the intermediate results of {len(tokens)} tokens")
        return logits[:, :V] if V % PANEL else logits

    def _product(self, matrices: Sequence[Tensor]) -> Any:
        def product(which: int, left: int, rows: int, out: int, mode: int) -> None:
            matrix = matrices[which]
            a, c = (
                torch.frombuffer((ctypes.c_float * (rows * width)).from_address(address), dtype=torch.float32)
                for address, width in zip((left, out), matrix.shape[::-1])
            )
            result = (a.view(rows, -1).to(matrix.dtype) @ matrix.T).float()
            if mode == _ADD:
                result += c.view(rows, -1)
            elif mode == _SQUARE:
                result = result.relu_().square_()
            c.view(rows, -1).copy_(result)

        self._callback = _PRODUCT(product)  # kept as long as the decoder
        return self._callback
