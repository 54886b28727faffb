"""Keys and values of the tokens that a model has read.

Letters used for shapes: N slots, B rows of a pass, T query length, S key length, K key/value heads,
D head size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Cache:
    """Keys and values of all layers with room for `length` positions; an argument of `forward`.

    All rows have read `filled` tokens. A layer with prefix tuning has `front` virtual keys before
    them, which the first pass writes.
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
        self.front, self.filled = list(front), 0
        size = (2, batch, kv_heads, length + max(front), head_size)
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
        start = 0 if self.is_empty else self.front[layer] + self.filled
        end = start + k.shape[2]
        self.keys[layer][:, :, start:end] = k
        self.values[layer][:, :, start:end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def advance(self, tokens: int) -> None:
        """A pass over so many tokens of every row is at its end."""
        self.filled += tokens

    def copy_row(
        self, row: int, source: "Cache", from_row: int, end: int, start: int | None = None
    ) -> None:
        """Make tokens start to end - 1 of a row those of a row of `source`; without `start` all
        up to end - 1, and what is in front of them."""
        first = 0 if start is None else min(self.front) + start
        columns = slice(first, max(self.front) + end)
        for device, stack in self.stacks.items():
            stack[:, :, row, :, columns] = source.stacks[device][:, :, from_row, :, columns]


class Slots(Cache):
    """A static cache of N slots, whose rows begin and end at different times.

    A slot holds the tokens of one row from index 0 on; `lengths[i]` of them have been read. A pass
    is over slots 0 to B - 1, each of which goes on at its own length; `begin` prepares it. What
    lies after a row's length is left from earlier rows and is never looked at.
    """

    is_empty = False  # the first pass of a row is in a Cache, whose rows `copy_row` brings here

    def __init__(self, slots: int, *sizes):
        super().__init__(slots, *sizes)
        self.lengths = [0] * slots
        device = next(iter(self.stacks))
        self.counts = torch.zeros(slots, dtype=torch.long, device=device)  # `lengths` there
        self.places: dict = {}  # (device, front) -> where a pass writes

    def copy_row(
        self, row: int, source: Cache, from_row: int, end: int, start: int | None = None
    ) -> None:
        super().copy_row(row, source, from_row, end, start)
        if self.lengths[row] != end:
            self.lengths[row] = end
            self.counts[row] = end

    @property
    def length(self) -> int:
        """Tokens that a slot has room for."""
        return self.keys[0].shape[2] - max(self.front)

    def begin(self, rows: int, keys: int | None = None) -> None:
        """The next pass is over the first `rows` slots, whose lengths may differ.

        keys: the number of keys that a pass of one token looks at, if not those of the longest row
        (model/graphs.py).
        """
        lengths = self.lengths[:rows]
        self.filled = max(lengths) if keys is None else keys - 1
        self.starts = None if keys is None and min(lengths) == self.filled else self.counts[:rows]
        self.places = {}

    def place(self, layer: int, k: Tensor) -> tuple[Tensor, Tensor]:
        """(slots [B, 1], columns [B, T]) where a layer's new keys k [B, K, T, D] go."""
        front, key = self.front[layer], (k.device, self.front[layer])
        if key not in self.places:
            B, T = k.shape[0], k.shape[2]
            steps = torch.arange(front, front + T, device=k.device)
            columns = self.starts.to(k.device, non_blocking=True)[:, None] + steps
            self.places[key] = torch.arange(B, device=k.device)[:, None], columns
        return self.places[key]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [B, K, T, D] at the end of each row; returns the keys and values of the
        longest row's length [B, K, S, D]."""
        B, T = k.shape[0], k.shape[2]
        end = self.front[layer] + self.filled + T
        keys, values = self.keys[layer], self.values[layer]
        if self.starts is None:
            keys[:B, :, end - T : end] = k
            values[:B, :, end - T : end] = v
        else:
            slots, columns = self.place(layer, k)
            keys[slots, :, columns] = k.transpose(1, 2)
            values[slots, :, columns] = v.transpose(1, 2)
        return keys[:B, :, :end], values[:B, :, :end]

    def advance(self, tokens: int) -> None:
        """`moved_on` says it: rows of a pass may have pads."""

    def moved_on(self, rows: int, tokens: int = 1) -> None:
        """The first `rows` slots have read so many tokens more."""
        self.counts[:rows] += tokens
        self.lengths[:rows] = [length + tokens for length in self.lengths[:rows]]
