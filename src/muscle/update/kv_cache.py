"""Keys and values of the tokens that a model has read: rows that come and go, and room for tokens to come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_ROOM = 64
"""Tokens for which room is made at a time."""


def is_by_token(cache: Any) -> bool:
    """Whether a cache is nothing but the keys and values of each token: one that `joined` can join."""
    return type(cache) is DynamicCache and all(
        type(layer) is DynamicSlidingWindowLayer or (type(layer) is DynamicLayer and layer.is_initialized)
        for layer in cache.layers
    )


def joined(caches: Sequence[DynamicCache], seats: Sequence[tuple[int, int]], length: int) -> DynamicCache:
    """The first cache, now of `length` tokens of chosen rows of all; rows that stay in their place are not copied.

    A key knows its token's position in its own row: it may stand in any column while the order is kept.

    Args:
        caches: Each `is_by_token`, or of this function.
        seats: For each row to come, the number of the cache that has it, and which row of it.
        length: At least one row's; shorter rows are padded with zeros on the left.
    """
    for number, layer in enumerate(caches[0].layers):
        layers: list[Any] = [cache.layers[number] for cache in caches]
        keys, values = [each.keys for each in layers], [each.values for each in layers]
        if isinstance(layer, DynamicSlidingWindowLayer):
            layer.cumulative_length, held = length, min(length, layer.sliding_window - 1)
            layer.keys, layer.values = stacked(keys, seats, held, dim=-2), stacked(values, seats, held, dim=-2)
        else:
            growing = layer if isinstance(layer, _GrowingLayer) else _GrowingLayer(keys[0], values[0])
            growing.join(keys, values, seats, length)
            caches[0].layers[number] = growing
    return caches[0]


def stacked(tensors: Sequence[Tensor], seats: Sequence[tuple[int, int]], width: int, dim: int = -1) -> Tensor:
    """Rows of tensors below each other, with zeros or a cut on the left of `dim` for them to be `width` wide."""
    return torch.stack([_fitted(tensors[number][row], width, dim) for number, row in seats])


def _fitted(tensor: Tensor, width: int, dim: int) -> Tensor:
    return pad(tensor, (*[0, 0] * (-dim - 1), width - tensor.shape[dim], 0))


class _GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One with room for tokens and rows to come: DynamicLayer copies all that it holds whenever a token is added.

    Args:
        keys: (B, heads, T, head size).
        values: Of the same tokens.
    """

    keys: Tensor
    values: Tensor
    _rooms: tuple[Tensor, Tensor]
    """Of which the keys and the values are the first rows and tokens."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self._hold(keys, values, len(keys), keys.shape[2])

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """As DynamicLayer's."""
        length = self.get_seq_length()
        end = length + key_states.shape[2]
        keys, values = self._rooms
        if end > keys.shape[2]:
            more = (0, 0, 0, end - length + _ROOM)
            keys, values = pad(self.keys, more), pad(self.values, more)
        self._hold(keys, values, len(self.keys), end)
        self.keys[:, :, length:], self.values[:, :, length:] = key_states, value_states
        return self.keys, self.values

    def join(
        self, keys: Sequence[Tensor], values: Sequence[Tensor], seats: Sequence[tuple[int, int]], length: int
    ) -> None:
        """Hold chosen rows of all, the first of which are this layer's own, as `joined` says."""
        left = self.get_seq_length() - length
        own_keys, own_values = self._rooms
        if left < 0 or len(seats) > len(own_keys):
            own_keys, own_values = stacked(keys, seats, length, dim=-2), stacked(values, seats, length, dim=-2)
            self._hold(own_keys, own_values, len(seats), length)
            return
        self._hold(own_keys[:, :, left:], own_values[:, :, left:], len(seats), length)
        for seat, (number, row) in enumerate(seats):
            if (number, row) != (0, seat):
                self.keys[seat] = _fitted(keys[number][row], length, dim=-2)
                self.values[seat] = _fitted(values[number][row], length, dim=-2)

    def _hold(self, keys: Tensor, values: Tensor, rows: int, length: int) -> None:
        """The first rows and tokens of tensors that may have room for more."""
        self._rooms = keys, values
        self.keys, self.values = keys[:rows, :, :length], values[:rows, :, :length]
