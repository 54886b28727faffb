"""A static cache whose rows come and go: that of the engine for answers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from model.cache import Cache


class Slots(Cache):
    """A static cache of N slots, whose rows begin and end at different times.

    A slot holds one row from column 0 on, virtual keys and tokens alike: `lengths[i]` columns of
    it are in use, and the column of a key is its position. A pass is over slots 0 to B - 1, each of
    which goes on at its own length; `begin` prepares it. What lies after a row's length is left
    from earlier rows and is never looked at.
    """

    is_empty = False  # the first pass of a row is in a Cache, whose rows `copy_row` brings here

    def __init__(self, slots: int, *sizes):
        super().__init__(slots, *sizes)
        self.before = 0  # a row's own virtual keys count as its columns
        self.lengths = [0] * slots
        self.skips = [self.skip] * slots  # of each row, layer by layer
        self.hidden: dict[int, Tensor] = {}  # layer -> keys that rows look at, where some do not
        device = next(iter(self.stacks))
        self.counts = torch.zeros(slots, dtype=torch.long, device=device)  # `lengths` there
        self.places: dict = {}  # device -> where a pass writes

    def copy_row(
        self, row: int, source: Cache, from_row: int, end: int, start: int | None = None
    ) -> None:
        super().copy_row(row, source, from_row, end, start)
        is_slot = isinstance(source, Slots)
        self.skips[row] = source.skips[from_row] if is_slot else source.skip
        end += source.before
        if self.lengths[row] != end:
            self.lengths[row] = end
            self.counts[row] = end

    @property
    def length(self) -> int:
        """Columns of a slot."""
        return self.keys[0].shape[2]

    def begin(self, rows: int, keys: int | None = None) -> None:
        """The next pass is over the first `rows` slots, whose lengths may differ.

        keys: the number of keys that a pass of one token looks at, if not those of the longest row
        (model/graphs.py).
        """
        lengths = self.lengths[:rows]
        self.filled = max(lengths) if keys is None else keys - 1
        self.starts = None if keys is None and min(lengths) == self.filled else self.counts[:rows]
        self.places, self.hidden = {}, {}
        skips = self.skips[:rows]
        self.skip = skips[0]
        if any(skip != self.skip for skip in skips):
            layers = list(zip(*skips, strict=True))
            self.skip = [min(layer) for layer in layers]
            for layer, own in enumerate(layers):
                if max(own) > min(own):
                    device = self.keys[layer].device
                    first = torch.tensor(own, device=device)[:, None]
                    keys_there = torch.arange(self.skip[layer], self.length, device=device)
                    self.hidden[layer] = (keys_there < first)[:, None, None]  # [B, 1, 1, ...]

    def place(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """(slots [B, 1], columns [B, T]) where a layer's new keys k [B, K, T, D] go."""
        if k.device not in self.places:
            B, T = k.shape[0], k.shape[2]
            steps = torch.arange(T, device=k.device)
            columns = self.starts.to(k.device, non_blocking=True)[:, None] + steps
            self.places[k.device] = torch.arange(B, device=k.device)[:, None], columns
        return self.places[k.device]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [B, K, T, D] at the end of each row; returns the keys and values of the
        longest row's length [B, K, S, D]."""
        B, T = k.shape[0], k.shape[2]
        skip, end = self.skip[layer], self.filled + T
        keys, values = self.keys[layer], self.values[layer]
        if self.starts is None:
            keys[:B, :, end - T : end] = k
            values[:B, :, end - T : end] = v
        else:
            slots, columns = self.place(k)
            keys[slots, :, columns] = k.transpose(1, 2)
            values[slots, :, columns] = v.transpose(1, 2)
        return keys[:B, :, skip:end], values[:B, :, skip:end]

    def hide(self, layer: int, mask: Tensor | None) -> Tensor | None:
        if layer not in self.hidden:
            return mask
        width = self.filled + 1 - self.skip[layer] if mask is None else mask.shape[-1]
        hidden = self.hidden[layer][..., :width]
        if mask is None:
            return ~hidden
        return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, -math.inf)

    def advance(self, tokens: int) -> None:
        """`moved_on` says it: rows of a pass may have pads."""

    def moved_on(self, tokens: Sequence[int]) -> None:
        """The first slots have read so many tokens more, each."""
        lengths = self.lengths[: len(tokens)]
        self.lengths[: len(tokens)] = [old + n for old, n in zip(lengths, tokens, strict=True)]
        if len(set(tokens)) == 1:
            self.counts[: len(tokens)] += tokens[0]
        else:
            self.counts[: len(tokens)] += torch.tensor(tokens, device=self.counts.device)
