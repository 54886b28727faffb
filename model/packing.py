"""Rows laid end to end: what works on each token by itself leaves out the pads.

    rows [B, T, C]   a a a . .      packed [1, N, C]   a a a b b b b b c c
                     b b b b b
                     c c . . .

Only attention sees rows, so that no row looks at another and positions begin anew in each; norms,
Linears, MLPs and adapters see packed tokens. `spread` makes rows of packed tokens, `pick` the
reverse; each is the backward pass of the other.
"""

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


@dataclass(frozen=True)
class Packing:
    """Which tokens of rows [B, T] are packed."""

    index: Tensor  # int64 [N]: their places among the B * T, ascending
    rows: int  # B
    length: int  # T, virtual tokens of prompt tuning included

    @classmethod
    def of(cls, lengths: Tensor, virtual: int = 0) -> "Packing":
        """The real tokens of right-padded rows and `virtual` ones before each; lengths [B]."""
        length = int(lengths.max()) + virtual
        real = torch.arange(length) < lengths[:, None] + virtual
        return cls(real.flatten().nonzero()[:, 0], len(lengths), length)

    def pack(self, x: Tensor) -> Tensor:
        """Rows [B, T, C] -> packed tokens [1, N, C]."""
        return pick(x, self.index)[None]

    def unpack(self, x: Tensor) -> Tensor:
        """Packed tokens [1, N, C] -> rows [B, T, C], zeros at the pads."""
        size = self.rows, self.length
        return Spread.apply(x[0], self.index, self.rows * self.length).unflatten(0, size)

    def to(self, device: torch.device) -> "Packing":
        index = self.index.to(device, non_blocking=device.type == "cuda")
        return replace(self, index=index)
