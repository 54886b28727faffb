"""Linears that read the same x: one product for all of them, by one packed copy of their weights.

q(x), k(x), v(x)      x [W_q; W_k; W_v]^T, made when the first of them is asked for, then split
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model import onednn
from model.quantize.int8 import scaled
from model.sites import Linear


class Together:
    """The packed copy of several weights [out_i, in], and the products that wait to be fetched."""

    def __init__(self, linears: Sequence[Linear]):
        self.weight = onednn.lay_out(torch.cat([linear.matrix().detach() for linear in linears]))
        scales = [linear.output_scale() for linear in linears]
        self.scale = None if scales[0] is None else torch.cat(scales)
        self.sizes = [linear.out_features for linear in linears]
        self.x: Tensor | None = None  # what `parts` are products of; None: nothing waits
        self.parts: list[Tensor | None] = []

    def product(self, x: Tensor, place: int) -> Tensor:
        """x [..., in] times the weight at `place` [..., out]; each product is kept until fetched.

        An adapter may give one of them another x, which is told by being another tensor.
        """
        if self.x is not x or self.parts[place] is None:
            self.x = x
            y = onednn.multiply(x, self.weight)
            y = y if self.scale is None else scaled(y, self.scale)
            self.parts = list(y.split(self.sizes, dim=-1))
        part, self.parts[place] = self.parts[place], None
        if not any(waiting is not None for waiting in self.parts):
            self.x = None
        return part
