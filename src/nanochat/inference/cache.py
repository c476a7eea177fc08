"""A key/value cache with room to spare: Transformers' own copies the whole past at every token, this one seldom."""

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

SPARE = 128  # columns, and at least a quarter of what is filled


class RoomyLayer(DynamicLayer):
    """One layer's keys and values, (B, K, T, D), as the filled front of a larger store.

    To be used as `Cache(layer_class_to_replicate=RoomyLayer)`.
    """

    _stores: tuple[torch.Tensor, torch.Tensor]  # (B, K, T and spare columns, D) of keys and of values

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._stores = key_states[:, :, :0], value_states[:, :, :0]
        self._fill(0)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append (B, K, new T, D) keys and values; return all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if end > self._stores[0].shape[-2]:
            columns = end + max(SPARE, end // 4)
            self._stores = _enlarged(self._stores[0], columns), _enlarged(self._stores[1], columns)
        for store, new in zip(self._stores, (key_states, value_states)):
            store[:, :, start:end] = new
        return self._fill(end)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows of the batch that `indices` names."""
        filled = self.get_seq_length()
        self._stores = self._stores[0][indices], self._stores[1][indices]
        self._fill(filled)

    def _fill(self, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = filled = self._stores[0][:, :, :columns], self._stores[1][:, :, :columns]
        return filled


def _enlarged(store: torch.Tensor, columns: int) -> torch.Tensor:
    B, K, T, D = store.shape
    larger = store.new_empty(B, K, columns, D)
    larger[:, :, :T] = store
    return larger
