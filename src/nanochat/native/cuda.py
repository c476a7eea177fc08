"""The CUDA decoder: a model's weights and a cache of keys and values in pages on a GPU; steps as captured graphs."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from nanochat.native import cuda_kernels as kernels
from nanochat.native.decoder import PAGE, Shape
from nanochat.native.packing import BITS, GROUP, rounded

MOST_ROWS = 64  # sequences with one new token each in a step
BUCKETS = (1, 2, 4, 8, 16, 32, 64)  # there is a graph for each of these numbers of rows
MOST_KEPT = 256  # tokens of prompts in a step whose logits can be asked for
PROGRAMS, MORE_PROGRAMS = {1: 320}, 1280  # by rows, and for more: about so many attend in a layer
# Positions that are read at once, the fewest of a program, its warps: with one warp nobody waits for another.
ATTEND, MORE_ATTEND = {1: (32, 32, 1)}, (32, 256, 1)
SPLITS = 4  # programs that share the sums of a product with few outputs
SAMPLE_BLOCK = 4096
GREEDY = (0.0, 0.0, 1.0, 0.0, 0.0)  # temperature, top-k, top-p, min-p and draw, as `kernels.sample` wants them


@dataclasses.dataclass
class Matrix:
    """A weight (outputs, inputs) in a format: floats; or numbers of 8 bits, or two of 4 to a byte, and their scales."""

    numbers: Tensor
    scales: Tensor  # (outputs, inputs / 32) in bf16; for floats the numbers once more
    bits: int

    @property
    def outputs(self) -> int:
        """Rows of the weight."""
        return len(self.numbers)

    @property
    def inputs(self) -> int:
        """Columns of the weight."""
        return self.numbers.shape[1] * (2 if self.bits == 4 else 1)

    @classmethod
    def of(cls, weight: Tensor, format: str) -> "Matrix":
        """Round a weight."""
        if format not in BITS:
            floats = weight.detach().to(torch.bfloat16 if format == "bf16" else torch.float32).contiguous()
            return cls(floats, floats, 16)
        scales, numbers = rounded(weight, format)
        if format == "int4":
            low, high = (numbers + 8).to(torch.uint8).unflatten(2, (2, GROUP // 2)).unbind(2)
            return cls((low | high << 4).flatten(1), scales, 4)
        return cls(numbers.to(torch.int8).flatten(1), scales, 8)

    def dense(self) -> Tensor:
        """The weight as floats, for products of many tokens."""
        if self.bits == 16:
            return self.numbers
        numbers = self.numbers
        if self.bits == 4:
            groups = numbers.view(self.outputs, -1, GROUP // 2)
            numbers = torch.cat([groups & 15, groups >> 4], dim=-1).to(torch.int8) - 8
        return (numbers.view(self.outputs, -1, GROUP) * self.scales[..., None]).flatten(1)


class CudaDecoder:
    """Runs steps of a model on a GPU and chooses tokens there.

    Sequences with one new token go by kernels of our own (`cuda_kernels`), captured in a CUDA graph for each number of
    rows; the tokens of prompts by PyTorch's products and attention. Nothing is waited for: logits and choices stay on
    the device, and a token chosen in one step can be the input of the next before anybody has seen it.

    Sums run in fp32, and so does the residual stream; what else lies between kernels is in the weights' precision.

    Without a GPU the same kernels run in Triton's interpreter (TRITON_INTERPRET=1), for tests.
    """

    def __init__(
        self,
        shape: Shape,
        format: str,
        matrices: Sequence[Tensor],  # (outputs, inputs): per layer qkv, o, fc1, fc2; then the head
        embedding: Tensor,  # (V, C)
        frequencies: Tensor,  # (D / 2) fp32
        positions: int,  # the longest context
        pages: int,
        forbidden: Sequence[int],  # tokens that are never chosen
    ) -> None:
        self.shape, self.format, self.pages, self.device = shape, format, pages, embedding.device
        self.dtype = torch.float32 if format == "fp32" else torch.bfloat16
        weights = [Matrix.of(matrix, format) for matrix in matrices]
        self._layers = [weights[n : n + 4] for n in range(0, len(weights) - 1, 4)]
        self._head = weights[-1]
        self._embedding = embedding.detach().contiguous()
        angles = torch.arange(positions, device=self.device)[:, None] * frequencies.to(self.device)
        self._cosines, self._sines = angles.cos() * shape.angle_scale, angles.sin() * shape.angle_scale
        self._width = -(-positions // PAGE)  # pages of the longest sequence
        # One page more than anybody owns: rows of a graph that stand for no sequence write there.
        size = (shape.layers, pages + 1, shape.kv_heads, PAGE, shape.head_dim)
        self._keys, self._values = (torch.zeros(size, dtype=self.dtype, device=self.device) for _ in range(2))
        self._on_gpu = self.device.type == "cuda"
        self._early = self._on_gpu and torch.cuda.get_device_capability(self.device) >= (9, 0)
        self._graphs: dict[int, Any] = {}
        self._buffers(forbidden)

    def _buffers(self, forbidden: Sequence[int]) -> None:
        """Memory of a step; its addresses are in the graphs."""
        shape = self.shape
        C, H, D = shape.hidden_size, shape.heads, shape.head_dim

        def new(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=self.device)

        self._stream, self._copy = new(MOST_ROWS, C), new(MOST_ROWS, C, dtype=self.dtype)
        self._qkv = new(MOST_ROWS, (H + 2 * shape.kv_heads) * D, dtype=self.dtype)
        self._attended = new(MOST_ROWS, H * D, dtype=self.dtype)
        self._hidden = new(MOST_ROWS, shape.mlp_size, dtype=self.dtype)
        # Parts of sums that several programs share, and how many of these have arrived.
        places = max(self._splits(rows) * rows * H for rows in BUCKETS)
        self._parts, self._maxima, self._weights = new(places, D), new(places), new(places)
        self._arrivals = new(MOST_ROWS * H, dtype=torch.int32)
        self._product_parts, self._product_arrivals = new(SPLITS * MOST_ROWS * (C + 64)), new(C, dtype=torch.int32)
        self.logits = new(MOST_ROWS + MOST_KEPT, shape.vocab_size)
        self.chosen = new(2 * MOST_ROWS, dtype=torch.int32)
        most = max(shape.vocab_size, SAMPLE_BLOCK)
        self._few_scores, self._few_ids = new(MOST_ROWS, most), new(MOST_ROWS, most, dtype=torch.int32)
        self._forbidden = new(shape.vocab_size, dtype=torch.int8)
        self._forbidden[list(forbidden)] = 1
        # What the host tells of a step, in one piece: wishes, tokens, lengths, tables. Two of them: the copy of one may
        # still be under way while the next is written, and its event tells when it is done.
        self._told = new(2 * MOST_ROWS * 5 * 2 + MOST_ROWS * (2 + self._width), dtype=torch.int32)
        self._telling = [torch.zeros_like(self._told, device="cpu", pin_memory=self._on_gpu) for _ in range(2)]
        self._copied: list[Any] = [torch.cuda.Event() if self._on_gpu else None for _ in range(2)]
        self._asked, self._tokens, self._lengths, self._tables = self._parts_of(self._told)

    def _parts_of(self, told: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        asked, tokens, lengths, tables = told.split([2 * MOST_ROWS * 10, MOST_ROWS, MOST_ROWS, MOST_ROWS * self._width])
        return asked.view(torch.float64).view(-1, 5), tokens, lengths, tables.view(MOST_ROWS, self._width)

    def step(
        self,
        tokens: Sequence[int],
        starts: Sequence[int],
        lengths: Sequence[int],
        tables: Sequence[Sequence[int]],
        rows: Sequence[int],
        wishes: Sequence[tuple[float, ...]] | None = None,
    ) -> list[int]:
        """Start a step; return the places in `logits`, and in `chosen`, where what comes of `rows` will be.

        Arguments as of `NativeDecoder.step`, but sequences with one token and their rows come first, and one such token
        may be -1 - p: the one chosen at place p in the step before. `wishes` are what to choose by, for each of `rows`
        (`kernels.sample` says what they are); without them nothing is chosen.
        """
        spans = list(itertools.pairwise(starts))
        one = next((n for n, (start, end) in enumerate(spans) if end - start > 1), len(spans))
        one = min(one, MOST_ROWS)
        later = [row for row in rows if row >= one]
        places = [*(row for row in rows if row < one), *range(MOST_ROWS, MOST_ROWS + len(later))]
        bucket = next((size for size in BUCKETS if size >= one), 0) if one else 0
        replay = self._replay(bucket) if bucket else None
        self._tell(bucket, tokens[:one], lengths[:one], tables[:one], places if wishes else [], wishes or [])
        if replay is not None:
            replay()
        if one < len(spans):
            self._run_prompts(tokens[one:], spans[one:], lengths[one:], tables[one:], later)
            if wishes and later:
                self._sample(MOST_ROWS, len(later))
        return places

    def _tell(
        self,
        bucket: int,
        tokens: Sequence[int],
        lengths: Sequence[int],
        tables: Sequence[Sequence[int]],
        places: Sequence[int],
        wishes: Sequence[tuple[float, ...]],
    ) -> None:
        """Send the device what `bucket` rows are to compute, the last of them for nobody, and what to choose by."""
        self._telling.reverse()
        self._copied.reverse()
        telling, copied = self._telling[0], self._copied[0]
        if self._on_gpu:
            copied.synchronize()
        asked, to_tokens, to_lengths, to_tables = (part.numpy() for part in self._parts_of(telling))
        asked[:bucket] = GREEDY
        for place, wish in zip(places, wishes):
            asked[place] = wish
        count = len(tokens)
        to_tokens[:count], to_tokens[count:bucket] = tokens, 0
        to_lengths[:count], to_lengths[count:bucket] = lengths, 1
        for row, pages in enumerate(tables):
            to_tables[row, : len(pages)] = pages
        to_tables[count:bucket, 0] = self.pages
        end = len(telling) - (MOST_ROWS - bucket) * self._width
        self._told[:end].copy_(telling[:end], non_blocking=True)
        if self._on_gpu:
            copied.record()

    def _replay(self, bucket: int) -> Callable[[], None]:
        """What runs one token of each of `bucket` rows."""
        if not self._on_gpu:
            return lambda: self._run_rows(bucket)
        if bucket not in self._graphs:
            chosen = self.chosen.clone()  # of a step that may still be running
            self._tell(bucket, [], [], [], [], [])
            self._run_rows(bucket)  # compiles
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._run_rows(bucket)
            self.chosen.copy_(chosen)
            self._graphs[bucket] = graph
        return self._graphs[bucket].replay

    def _run_rows(self, R: int) -> None:
        shape = self.shape
        H, K, D = shape.heads, shape.kv_heads, shape.head_dim
        stream, copy, qkv, attended, hidden = self._stream, self._copy, self._qkv, self._attended, self._hidden
        early = R == 1 and self._early
        splits, (block, least, warps) = self._splits(R), ATTEND.get(R, MORE_ATTEND)
        least = least if self._on_gpu else block  # short sequences of tests are to be shared too
        self._embed(self._tokens, stream[:R], copy)
        for layer, (to_qkv, to_out, to_hidden, from_hidden) in enumerate(self._layers):
            self._project(copy, to_qkv, qkv, R, norm=True)
            kernels.attend[R, H, splits](
                qkv, self._keys[layer], self._values[layer], self._tables, self._lengths, self._cosines, self._sines,
                attended, self._parts, self._maxima, self._weights, self._arrivals, self._width, shape.eps, D**-0.5,
                H=H, K=K, D=D, SPLITS=splits, BLOCK=block, LEAST=least, num_warps=warps, **_early(early),
            )  # fmt: skip
            self._project(attended, to_out, stream, R, mode=kernels.ADD)
            self._project(copy, to_hidden, hidden, R, norm=True, mode=kernels.SQUARE)
            self._project(hidden, from_hidden, stream, R, mode=kernels.ADD)
        self._project(copy, self._head, self.logits, R, norm=True, mode=kernels.CAP)
        self._sample(0, R, early)

    def _splits(self, rows: int) -> int:
        """Programs that share a sequence and a head."""
        programs = PROGRAMS.get(rows, MORE_PROGRAMS) if self._on_gpu else 8  # the interpreter runs one after the other
        return 1 << max(0, (programs // (rows * self.shape.heads)).bit_length() - 1)

    def _embed(self, tokens: Tensor, out: Tensor, copy: Tensor) -> None:
        C = self.shape.hidden_size
        block = 1 << (C - 1).bit_length()
        kernels.embed[(len(out),)](
            tokens, self.chosen, self._embedding, out, copy, self.shape.eps, C=C, BLOCK=block, num_warps=4
        )

    def _project(
        self,
        x: Tensor,
        matrix: Matrix,
        out: Tensor,
        rows: int,
        norm: bool = False,
        mode: Any = kernels.STORE,
    ) -> None:
        """out[:rows] = what `mode` makes of norm(x[:rows]) @ matrix.T"""
        K, N, eps, cap = matrix.inputs, matrix.outputs, self.shape.eps, self.shape.softcap or 0.0
        options: dict[str, Any] = {"K": K, "BITS": matrix.bits, "NORM": norm, "MODE": mode}
        if not self._on_gpu:
            options["BLOCK_N"] = 64
        if rows == 1:
            options = one_row_blocks(N, K) | options
            programs = -(-N // options["BLOCK_N"])
            kernels.project_one[(programs,)](
                x, matrix.numbers, matrix.scales, out, self._copy, N, eps, cap, **options, **_early(self._early)
            )
        else:
            options = rows_blocks(N, K, mode) | options
            # Triton's interpreter can't multiply in bf16.
            options["TYPE"] = tl.bfloat16 if self._on_gpu and self.dtype == torch.bfloat16 else tl.float32
            options["BLOCK_R"] = max(16, 1 << (rows - 1).bit_length())
            kernels.project[-(-N // options["BLOCK_N"]), options["SPLITS"]](
                x, matrix.numbers, matrix.scales, out, self._copy, self._product_parts, self._product_arrivals, rows, N,
                eps, cap, **options,
            )  # fmt: skip

    def _sample(self, first: int, rows: int, early: bool = False) -> None:
        kernels.sample[(rows,)](
            self.logits[first:], self._forbidden, self._asked[first:], self.chosen[first:], self._few_scores,
            self._few_ids, self.shape.vocab_size, BLOCK=SAMPLE_BLOCK, SMALL=1024, num_warps=16, **_early(early),
        )  # fmt: skip

    def _run_prompts(
        self,
        tokens: Sequence[int],
        spans: Sequence[tuple[int, int]],
        lengths: Sequence[int],
        tables: Sequence[Sequence[int]],
        rows: Sequence[int],
    ) -> None:
        """Many tokens of each sequence; `rows`, counted as `spans` are, get logits from place `MOST_ROWS` on."""
        shape, first = self.shape, spans[0][0]
        N, H, K, D = len(tokens), shape.heads, shape.kv_heads, shape.head_dim
        positions: list[int] = []
        slots: list[int] = []
        for (start, end), length, pages in zip(spans, lengths, tables):
            of_span = range(length - (end - start), length)
            positions += of_span
            slots += [pages[position // PAGE] * PAGE + position % PAGE for position in of_span]
        ids, at, to = self._sent([tokens, positions, slots])
        [kept] = self._sent([[row - first for row in rows]])
        pasts = [
            self._sent([pages[: -(-length // PAGE)]])[0] if length > end - start else None
            for (start, end), length, pages in zip(spans, lengths, tables)
        ]
        stream = torch.empty(N, shape.hidden_size, device=self.device)
        self._embed(ids, stream, torch.empty_like(stream))
        for layer, (to_qkv, to_out, to_hidden, from_hidden) in enumerate(self._layers):
            qkv = self._normed(stream) @ to_qkv.dense().T
            kernels.keep[N, H + 2 * K](
                qkv, self._keys[layer], self._values[layer], at, to, self._cosines, self._sines, shape.eps,
                H=H, K=K, D=D, num_warps=1,
            )  # fmt: skip
            attended = torch.empty(N, H * D, dtype=self.dtype, device=self.device)
            heads = qkv.view(N, H + 2 * K, D).transpose(0, 1)[None]  # (1, H + 2K, N, D)
            for (start, end), length, past in zip(spans, lengths, pasts):
                here = slice(start - first, end - first)
                query, key, value = heads[:, :, here].split([H, K, K], dim=1)
                options: dict[str, Any] = {"is_causal": True}
                if past is not None:
                    key, value = (
                        cache[layer][past].transpose(0, 1).reshape(1, K, -1, D)[:, :, :length]
                        for cache in (self._keys, self._values)
                    )
                    options = {"attn_mask": causal_lower_right(end - start, length)}
                result = F.scaled_dot_product_attention(query, key, value, enable_gqa=H != K, **options)
                attended[here] = result[0].transpose(0, 1).flatten(1)
            stream += attended @ to_out.dense().T
            stream += (self._normed(stream) @ to_hidden.dense().T).relu_().square_() @ from_hidden.dense().T
        last = stream[kept]
        for start in range(0, len(rows), MOST_ROWS):
            part = last[start : start + MOST_ROWS].to(self.dtype)
            out = self.logits[MOST_ROWS + start :]
            self._project(part, self._head, out, len(part), norm=True, mode=kernels.CAP)

    def _normed(self, stream: Tensor) -> Tensor:
        return F.rms_norm(stream, stream.shape[-1:], eps=self.shape.eps).to(self.dtype)

    def _sent(self, numbers: Sequence[Sequence[int]]) -> list[Tensor]:
        """Lists of whole numbers, as long as each other, on the device as int32."""
        together = torch.tensor(numbers, dtype=torch.int32, pin_memory=self._on_gpu)
        return list(together.to(self.device, non_blocking=True))


def _early(early: bool) -> dict[str, Any]:
    """Options of a kernel that starts before the one before it is done."""
    return {"EARLY": True, "launch_pdl": True} if early else {"EARLY": False}


def one_row_blocks(N: int, K: int) -> dict[str, int]:
    """Tiles of `project_one`, all of whose weights are in registers at once: at most about 40 KB a program."""
    block_k = min(256, K & -K)  # a power of two that leaves no rest
    if K // block_k > 32:
        block_k = 1 << (K - 1).bit_length()
    return {"BLOCK_N": 4 if N <= 2048 else 8, "BLOCK_K": block_k, "num_warps": 4}


def rows_blocks(N: int, K: int, mode: Any) -> dict[str, int]:
    """Tiles of `project`."""
    splits = SPLITS if mode == kernels.ADD else 1
    block_k = min(128, 1 << (K - 1).bit_length())
    return {"BLOCK_N": 32 if N <= 4096 else 64, "BLOCK_K": block_k, "SPLITS": splits, "num_warps": 4, "num_stages": 4}
