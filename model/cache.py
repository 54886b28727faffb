"""Keys and values of the tokens that a model has read.

Letters used for shapes: N slots, B rows of a pass, T query length, S key length, K key/value heads,
D head size.
"""

import math
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

    def moved_on(self, rows: int, tokens: int = 1) -> None:
        """The first `rows` slots have read so many tokens more."""
        self.counts[:rows] += tokens
        self.lengths[:rows] = [length + tokens for length in self.lengths[:rows]]
