"""What computes a step: a decoder of our own for CPU or GPU where it can, else the model in PyTorch, their twin."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from nanochat.inference.request import Sample
from nanochat.inference.sampler import wish
from nanochat.inference.scheduler import Batch
from nanochat.model.native import cuda_decoder, native_decoder
from nanochat.native.decoder import PAGE, NativeDecoder

CHUNKS = {"cpu": 256, "cuda": 2048}  # tokens of a step: enough to multiply, and no other request waits long for it


class Runner(Protocol):
    """Runs steps over a cache of `pages` pages, which it owns."""

    pages: int

    def run(self, batch: Batch) -> Tensor:
        """The logits of `batch.rows`, (rows, V) fp32 on the CPU; keys and values of all its tokens are kept."""
        ...

    def describe(self) -> str:
        """What it computes with, for people."""
        ...


@dataclass
class Flight:
    """A step that the device may still be at, and what it will have chosen."""

    batch: Batch
    places: list[int]  # of the chosen tokens of `batch.choosing`, on the device and in `chosen`
    chosen: Tensor  # int32 on the host, once `arrived`
    arrived: Any
    dropped: set[Sample] = field(default_factory=set)  # whose choice isn't wanted any more

    def tokens(self) -> list[int]:
        """The chosen tokens, -1 where logits were not finite; waits until they are here."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.chosen[self.places].tolist()


class CudaRunner:
    """The CUDA decoder on a GPU. It can start a step whose tokens nobody has seen yet (`launch`)."""

    def __init__(self, model: Any, format: str, pages: int, forbidden: Sequence[int]) -> None:
        self.pages = pages
        self.decoder = cuda_decoder(model, format, pages, forbidden)
        on_gpu = self.decoder.device.type == "cuda"
        self._landing = [torch.zeros_like(self.decoder.chosen, device="cpu", pin_memory=on_gpu) for _ in range(2)]

    def run(self, batch: Batch) -> Tensor:
        places = self.decoder.step(batch.tokens, batch.starts, batch.lengths, batch.tables, batch.rows)
        return self.decoder.logits[places].cpu()

    def launch(self, batch: Batch) -> Flight:
        """Start a step that chooses the next token of every sample whose last one is in it."""
        decoder, wishes = self.decoder, [wish(sample) for sample in batch.choosing]
        places = decoder.step(batch.tokens, batch.starts, batch.lengths, batch.tables, batch.rows, wishes)
        self._landing.reverse()
        chosen = self._landing[0].copy_(decoder.chosen, non_blocking=True)
        arrived = None
        if decoder.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        return Flight(batch, places, chosen, arrived)

    def describe(self) -> str:
        return f"CUDA graphs {self.decoder.format}"


class NativeRunner:
    """The native decoder on a CPU."""

    def __init__(self, model: Any, format: str, weights: list[Tensor], pages: int, threads: int) -> None:
        self.pages = pages
        self.decoder: NativeDecoder = native_decoder(model, format, weights, pages, threads)

    def run(self, batch: Batch) -> Tensor:
        return self.decoder.step(batch.tokens, batch.starts, batch.lengths, batch.tables, batch.rows)

    def describe(self) -> str:
        threads = self.decoder.threads
        return f"native {self.decoder.format}, {threads} thread{'s' * (threads > 1)}"


class TorchRunner:
    """The model's own forward pass, with keys and values in pages: any device, dtype and attention that takes a mask.

    One-token sequences run together, padded by their masks to the longest; prompts run one by one.
    """

    def __init__(self, model: PreTrainedModel, pages: int) -> None:
        self.model = model
        self.pages = pages
        self.cache = _PagedCache(pages)

    @torch.no_grad()
    def run(self, batch: Batch) -> Tensor:
        spans = list(zip(batch.starts, batch.starts[1:]))
        single = [n for n, (start, end) in enumerate(spans) if end - start == 1]
        groups = [single] * bool(single) + [[n] for n in range(len(spans)) if n not in set(single)]
        logits: dict[int, Tensor] = {}
        wanted = set(batch.rows)
        with _evaluating(self.model):
            for group in groups:
                first, last = spans[group[0]]
                places = [n for n in range(last - first) if first + n in wanted] if len(group) == 1 else [0]
                rows = self._forward(
                    [batch.tokens[slice(*spans[n])] for n in group],
                    [batch.lengths[n] for n in group],
                    [batch.tables[n] for n in group],
                    places or [0],
                )
                for row, n in enumerate(group):
                    for place, values in zip(places, rows[row]):
                        logits[spans[n][0] + place] = values
        return torch.stack([logits[row] for row in batch.rows]).cpu() if batch.rows else torch.empty(0)

    def describe(self) -> str:
        dtype = str(self.model.dtype).removeprefix("torch.")
        return f"PyTorch {dtype} on {self.model.device.type}"

    def _forward(
        self, tokens: list[list[int]], lengths: list[int], tables: list[list[int]], places: list[int]
    ) -> Tensor:
        """Logits (R, places, V) of R sequences with T new tokens each."""
        device, T = self.model.device, len(tokens[0])
        width = -(-max(lengths) // PAGE)
        table = torch.tensor([(pages + [0] * width)[:width] for pages in tables], device=device)  # (R, pages)
        ends = torch.tensor(lengths, device=device)[:, None]  # (R, 1)
        positions = ends - T + torch.arange(T, device=device)  # (R, T)
        columns = torch.arange(width * PAGE, device=device)
        seen = columns <= positions[..., None]  # (R, T, S)
        mask = torch.where(seen, 0.0, torch.finfo(self.model.dtype).min).to(self.model.dtype)[:, None]
        self.cache.table = table
        self.cache.unfilled = columns >= ends  # (R, S)
        self.cache.slots = table.gather(1, positions // PAGE) * PAGE + positions % PAGE  # (R, T)
        output = self.model(
            input_ids=torch.tensor(tokens, device=device),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=torch.tensor(places, device=device),
        )
        return output.logits.float()


class _PagedCache(Cache):
    """Transformers' view of the pages: new keys and values go to `slots`, all of `table`'s pages come back."""

    table: Tensor  # (R, pages)
    slots: Tensor  # (R, T), where the new tokens go
    unfilled: Tensor  # (R, S), what lies after each sequence: zeros come back, for nothing times NaN is NaN

    def __init__(self, pages: int) -> None:
        super().__init__(layers=[])
        self._pages = pages
        self._stores: dict[int, tuple[Tensor, Tensor]] = {}  # by layer, (pages x 16, K, D) each

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if layer_idx not in self._stores:
            _, K, _, D = key_states.shape
            stores = (_lazy_zeros((self._pages * PAGE, K, D), key_states) for _ in range(2))
            self._stores[layer_idx] = next(stores), next(stores)
        all_slots = (self.table[..., None] * PAGE + torch.arange(PAGE, device=self.table.device)).flatten(1)  # (R, S)
        for store, new in zip(self._stores[layer_idx], (key_states, value_states)):
            store[self.slots] = new.transpose(1, 2)
        keys, values = (
            store[all_slots].masked_fill_(self.unfilled[..., None, None], 0).transpose(1, 2)  # (R, K, S, D)
            for store in self._stores[layer_idx]
        )
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # masks and positions are given


def _lazy_zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros in the dtype and on the device of `like`; on a CPU memory is taken only as it is used."""
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    numbers = np.zeros(math.prod(shape) * like.element_size(), np.uint8)
    return torch.from_numpy(numbers).view(like.dtype).view(shape)


def page_bytes(config: Any, bytes_per_number: int) -> int:
    """Memory of a page: keys and values of 16 positions in all layers."""
    head_dim = config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * PAGE * bytes_per_number


@contextlib.contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Hold the model in evaluation mode and give it back as it was: training asks questions of its own model."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
