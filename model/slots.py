"""A static cache whose rows come and go: that of the engine for answers."""

import torch
from torch import Tensor

from model.cache import Cache


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
