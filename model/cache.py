"""Keys and values of the tokens that a model has read.

Letters used for shapes: B batch, T query length, S key length, K key/value heads, D head size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Cache:
    """Keys and values of all layers with room for `length` positions; an argument of `forward`."""

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        length: int,
        head_size: int,
        dtype: torch.dtype,
        devices: Sequence[torch.device],
    ):
        """devices: of each layer."""
        size = (batch, kv_heads, length, head_size)
        self.keys = [torch.empty(size, dtype=dtype, device=device) for device in devices]
        self.values = [torch.empty_like(keys) for keys in self.keys]
        self.filled = 0  # positions written so far, the same for every layer between two passes

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v [B, K, T, D]; returns all keys and values so far [B, K, S, D]."""
        end = self.filled + k.shape[2]
        self.keys[layer][:, :, self.filled : end] = k
        self.values[layer][:, :, self.filled : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order: indices int64 [B'], or a mask bool [B]."""
        for layer in range(len(self.keys)):
            here = rows.to(self.keys[layer].device)
            self.keys[layer], self.values[layer] = self.keys[layer][here], self.values[layer][here]
