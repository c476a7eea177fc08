"""`generate` on a CPU by the native decoder: a cache that computes, in place of Transformers' own."""

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMode

from nanochat.host import free_memory
from nanochat.model.modeling import NanoChatForCausalLM
from nanochat.model.native import native_decoder, native_obstacle, packed_weights, weights_state
from nanochat.native.decoder import PAGE

FORMATS = {torch.float32: "fp32", torch.bfloat16: "bf16"}
MEMORY_SHARE = 0.5  # of what is free, for the weights once more in the decoder's order

_packed: "weakref.WeakKeyDictionary[nn.Module, tuple[Any, list[Tensor]]]" = weakref.WeakKeyDictionary()


class NativeCache(Cache):
    """Keys and values of a batch in the native decoder, with the decoder: new tokens in, logits out.

    Padding is left out: a row has its own length. Made for one call of `generate`.
    """

    def __init__(self, model: NanoChatForCausalLM, format: str, max_length: int, rows: int):
        super().__init__(layers=[])
        self.pages_each = -(-max_length // PAGE)
        self.lengths = [0] * rows  # without padding
        self.columns = 0  # with it
        self.decoder = native_decoder(
            model, format, _weights(model, format), rows * self.pages_each, torch.get_num_threads()
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the batch so far, padding counted."""
        return self.columns

    def logits(self, input_ids: Tensor, attention_mask: Tensor | None, kept: int) -> Tensor:
        """Run new tokens (B, T); the logits (B, kept, V) of the last `kept`, or of all (0).

        What the mask (B, past + T) leaves out gets logits of zero.
        """
        B, T = input_ids.shape
        kept = kept or T
        new = torch.ones(B, T) if attention_mask is None else attention_mask[:, -T:]
        tokens: list[int] = []
        starts, places, rows = [0], [], []  # of the kept columns: where they go in the answer, and where they come from
        for row, (ids, seen) in enumerate(zip(input_ids.tolist(), new.tolist())):
            for column, (id, is_seen) in enumerate(zip(ids, seen)):
                if is_seen and column >= T - kept:
                    places.append(row * kept + column - (T - kept))
                    rows.append(len(tokens))
                if is_seen:
                    tokens.append(id)
            starts.append(len(tokens))
            self.lengths[row] += starts[-1] - starts[-2]
        self.columns += T
        each = self.pages_each
        tables = [range(row * each, (row + 1) * each) for row in range(B)]
        some = self.decoder.step(tokens, starts, self.lengths, tables, rows)
        if len(places) == B * kept:
            return some.view(B, kept, -1)
        return some.new_zeros(B * kept, some.shape[1]).index_copy(0, torch.tensor(places), some).view(B, kept, -1)


def native_cache(
    model: NanoChatForCausalLM,
    config: GenerationConfig,
    model_kwargs: Mapping[str, Any],
    mode: GenerationMode,
    max_length: int,
) -> NativeCache | None:
    """The cache for a call of `generate` that the native decoder can do as the model would; None for any other.

    It can do greedy search and sampling from token ids, with nothing asked for but tokens, by a model whose modules
    are those of this package, with no hooks: adapters and probes are not for it to pass by.
    """
    format = FORMATS.get(model.dtype)
    asks_more = config.return_dict_in_generate or config.output_attentions or config.output_hidden_states
    if (
        mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
        or type(model_kwargs.get("past_key_values")) is not DynamicCache
        or config.cache_implementation not in (None, "dynamic")
        or config.is_assistant
        or asks_more
        or model_kwargs.get("inputs_embeds") is not None
        or format is None
        or model.training
        or native_obstacle(model, format) is not None
        or not _plain_positions(model_kwargs)
    ):
        return None
    if model not in _packed and MEMORY_SHARE * free_memory("cpu") < model.get_memory_footprint():
        return None
    return NativeCache(model, format, max_length, len(model_kwargs["position_ids"]))


def _plain_positions(model_kwargs: Mapping[str, Any]) -> bool:
    """Whether positions just count what the mask shows, and the mask shows the last column."""
    positions, mask = model_kwargs.get("position_ids"), model_kwargs.get("attention_mask")
    if positions is None or positions.ndim != 2:
        return False
    if mask is None:
        return bool((positions == torch.arange(positions.shape[1])).all())
    seen = mask.bool()
    return bool(seen[:, -1].all()) and torch.equal(positions[seen], (seen.cumsum(1) - 1)[seen])


def _weights(model: NanoChatForCausalLM, format: str) -> list[Tensor]:
    """The model's packed weights, made anew when one of them has changed."""
    state = format, model.config.num_hidden_layers, weights_state(model)
    known = _packed.get(model)
    if known is None or known[0] != state:
        _packed[model] = known = state, packed_weights(model, format)
    return known[1]
