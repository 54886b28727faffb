"""Rows laid end to end: what works on each token by itself leaves out the pads.

    rows [B, T, C]   a a a . .      packed [1, N, C]   a a a b b b b b c c
                     b b b b b
                     c c . . .

Only attention sees rows, so that no row looks at another and positions begin anew in each; norms,
Linears, MLPs and adapters see packed tokens. `spread` makes rows of packed tokens, `pick` the
reverse; each is the backward pass of the other.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


class Pick(torch.autograd.Function):
    """x [M, C] -> its rows at `index` [N, C]; no number of `index` occurs twice."""

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.length = len(x)
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (index,) = ctx.saved_tensors
        return spread(gradient, index, ctx.length), None


class Spread(torch.autograd.Function):
    """x [N, C] -> [length, C]: the rows of x at `index`, zeros elsewhere."""

    @staticmethod
    def forward(ctx, x: Tensor, index: Tensor, length: int) -> Tensor:
        ctx.save_for_backward(index)
        return spread(x, index, length)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (index,) = ctx.saved_tensors
        return gradient.index_select(0, index), None, None


def spread(x: Tensor, index: Tensor, length: int) -> Tensor:
    return x.new_zeros(length, x.shape[1]).index_copy_(0, index, x)


def pick(x: Tensor, index: Tensor) -> Tensor:
    """x [B, T, C] -> the tokens at `index`, int64 [N] into B * T, each at most once: [N, C]."""
    return Pick.apply(x.flatten(0, 1), index)


def filling(chosen: Tensor) -> Tensor:
    """The first places that are not chosen, bool [N]: so many that their number is round.

    A CPU compiles a product for each number of rows that it has not seen yet. Round is a multiple
    of a power of two, at most 64, which adds a sixteenth at most.
    """
    count = int(chosen.sum())
    multiple = min(64, 2 ** max(0, (count // 16).bit_length() - 1))
    return (~chosen).nonzero()[: -count % multiple, 0]


@dataclass(frozen=True)
class Packing:
    """Which tokens of rows [B, T] are packed, and which of these leave the last block.

    The last block's queries and MLP are needed only where a token predicts a label; its keys and
    values for all.
    """

    index: Tensor  # int64 [N]: their places among the B * T, ascending; at the end a few pads
    rows: int  # B
    length: int  # T, virtual tokens of prompt tuning included
    kept: Tensor  # int64 [L]: places among the N of those that leave the last block
    is_last: bool = False  # for the last block

    @classmethod
    def of(cls, lengths: Tensor, kept: Tensor, virtual: int = 0) -> "Packing":
        """The real tokens of right-padded rows and `virtual` ones before each; lengths [B]."""
        length = int(lengths.max()) + virtual
        real = (torch.arange(length) < lengths[:, None] + virtual).flatten()
        index = torch.cat((real.nonzero()[:, 0], filling(real)))
        return cls(index, len(lengths), length, kept)

    @property
    def leaving(self) -> Tensor:
        """Places among the B * T of the tokens that leave a block."""
        return self.index[self.kept] if self.is_last else self.index

    def last(self) -> "Packing":
        return replace(self, is_last=True)

    def keep(self, x: Tensor) -> Tensor:
        """x [1, N, C] -> the tokens that leave the block [1, N or L, C]."""
        return pick(x, self.kept)[None] if self.is_last else x

    def pack(self, x: Tensor) -> Tensor:
        """Rows [B, T, C] -> the tokens that leave the block [1, N or L, C]."""
        return pick(x, self.leaving)[None]

    def unpack(self, x: Tensor, index: Tensor) -> Tensor:
        """Packed tokens at `index` [1, ..., C] -> rows [B, T, C], zeros elsewhere."""
        size = self.rows, self.length
        return Spread.apply(x[0], index, self.rows * self.length).unflatten(0, size)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Packing":
        """The same with changed tensors, such as copies on another device."""
        return replace(self, index=change(self.index), kept=change(self.kept))
