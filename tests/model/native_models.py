"""Models for the tests of the native decoder, their twins with rounded weights, and a way to run it on sequences."""

import copy
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import tiny_config
from torch import Tensor
from transformers.cache_utils import DynamicCache

from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.model.native import native_decoder, packed_weights
from nanochat.native.decoder import PAGE, NativeDecoder, decoder_library
from nanochat.native.packing import rounded_weight

needs_native = pytest.mark.skipif(decoder_library() is None, reason="there is no C compiler")


def native_model(seed: int = 0, **changes: Any) -> NanoChatForCausalLM:
    """A model that the native decoder can run: heads of 16, all sizes multiples of 32."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 256, "num_key_value_heads": 2}
    torch.manual_seed(seed)
    return NanoChatForCausalLM(tiny_config(**(sizes | changes))).eval()


def rounded_twin(model: NanoChatForCausalLM, format: str) -> NanoChatForCausalLM:
    """The model with all matrices as they are in a format; the embedding stays."""
    twin = copy.deepcopy(model).float()
    for module in twin.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = rounded_weight(module.weight.data, format)
    return twin


class RoundedCache(DynamicCache):
    """Keeps keys and values in bf16, as the native decoder does but for fp32."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return super().update(key_states.bfloat16().float(), value_states.bfloat16().float(), *args, **kwargs)


@torch.no_grad()
def plain_logits(model: NanoChatForCausalLM, tokens: Sequence[int], cache: Any = None) -> Tensor:
    """The model's own logits of one sequence, (T, V)."""
    return model(torch.tensor([list(tokens)]), past_key_values=cache).logits[0]


def decoder_of(model: NanoChatForCausalLM, format: str = "fp32", pages: int = 32, threads: int = 1) -> NativeDecoder:
    return native_decoder(model, format, packed_weights(model, format), pages, threads)


def native_logits(
    decoder: NativeDecoder, sequences: Sequence[Sequence[int]], chunks: int | None = None, seed: int = 0
) -> list[Tensor]:
    """The decoder's logits of every token of some sequences, (T, V) each.

    The sequences run together, in pieces of random lengths up to `chunks` (whole, one after the other, if None), on
    pages that lie in any order.
    """
    rng = random.Random(seed)
    pages = rng.sample(range(decoder.pages), decoder.pages)
    tables = [[pages.pop() for _ in range(-(-len(tokens) // PAGE))] for tokens in sequences]
    done = [0] * len(sequences)
    logits: list[list[Tensor]] = [[] for _ in sequences]
    while any(at < len(tokens) for at, tokens in zip(done, sequences)):
        open_ones = [n for n, tokens in enumerate(sequences) if done[n] < len(tokens)]
        now = rng.sample(open_ones, rng.randint(1, len(open_ones))) if chunks else open_ones[:1]
        starts, new = [0], []
        for n in now:
            count = min(len(sequences[n]) - done[n], rng.randint(1, chunks) if chunks else len(sequences[n]))
            new += sequences[n][done[n] : done[n] + count]
            starts.append(len(new))
            done[n] += count
        # A sequence's table may be longer than it needs: the engine reserves ahead.
        rows = decoder.step(new, starts, [done[n] for n in now], [tables[n] for n in now], range(len(new)))
        for n, start, end in zip(now, starts, starts[1:]):
            logits[n].append(rows[start:end].clone())
    return [torch.cat(pieces) for pieces in logits]


def random_sequences(vocab_size: int, lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(vocab_size) for _ in range(length)] for length in lengths]
