"""Keys and values of the tokens that a model has read.

Letters used for shapes: N slots, B rows of a pass, T query length, S key length, K key/value heads,
D head size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Cache:
    """Keys and values of all layers with room for `length` positions; an argument of `forward`.

    All rows have read `filled` tokens, which begin at the same column in every layer: `before`, the
    most virtual keys that a layer has before them. A layer's own end there, `skip` columns after
    the first; the first pass writes them.
    """

    starts: Tensor | None = None  # [B], where rows begin to write, if not all at `filled`

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        length: int,
        head_size: int,
        dtype: torch.dtype,
        devices: list[torch.device],
        front: Sequence[int],
    ):
        """devices, front: of each layer."""
        self.before, self.filled = max(front), 0
        self.skip = [self.before - virtual for virtual in front]
        size = (2, batch, kv_heads, length + self.before, head_size)
        # Zeros, as a masked value counts 0 times what it is. One copy moves a row of all layers.
        self.stacks = {  # device -> [its layers, 2, batch, K, length, D]
            device: torch.zeros(devices.count(device), *size, dtype=dtype, device=device)
            for device in dict.fromkeys(devices)
        }
        layers = {device: iter(range(len(stack))) for device, stack in self.stacks.items()}
        pairs = [self.stacks[device][next(layers[device])] for device in devices]
        # Detached: made without gradients, a view could not be written to in a pass with them.
        self.keys, self.values = [p[0].detach() for p in pairs], [p[1].detach() for p in pairs]

    @property
    def is_empty(self) -> bool:
        """Whether the next pass is the first of its rows."""
        return self.filled == 0

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v [B, K, T, D], in the first pass with the virtual ones in front; returns all
        keys and values so far [B, K, S, D]."""
        skip = self.skip[layer]
        start = skip if self.is_empty else self.before + self.filled
        end = start + k.shape[2]
        self.keys[layer][:, :, start:end] = k
        self.values[layer][:, :, start:end] = v
        return self.keys[layer][:, :, skip:end], self.values[layer][:, :, skip:end]

    def hide(self, layer: int, mask: Tensor | None) -> Tensor | None:
        """The mask for the keys that `update` has returned, without what is none of a row's."""
        return mask

    def advance(self, tokens: int) -> None:
        """A pass over so many tokens of every row is at its end."""
        self.filled += tokens

    def copy_row(
        self, row: int, source: "Cache", from_row: int, end: int, start: int | None = None
    ) -> None:
        """Make tokens start to end - 1 of a row those of a row of `source`; without `start` all
        up to end - 1, and what is in front of them. One of the two may be Slots."""
        before = max(self.before, source.before)
        columns = slice(0 if start is None else before + start, before + end)
        for device, stack in self.stacks.items():
            stack[:, :, row, :, columns] = source.stacks[device][:, :, from_row, :, columns]
