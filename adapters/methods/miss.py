"""MiSS (Kang & Yin 2024, eq. 4): one small matrix, repeated along the input of the weight.

    x ─┬── W ───────────────────────── + ── y      y = W x + Dᵀ s,   s_i = x_i + x_(i+r) + ...
       └── sum of pieces of r ── Dᵀ ───┘

D is [r, out], zeros, so training starts at the base. x is cut into pieces of r features, which are
summed; the last one may be shorter. The same as W + [Dᵀ Dᵀ ...], and as a LoRA whose A is fixed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import Dropout, Size, training
from adapters.methods.lora import LowRank
from files.errors import UserError
from model.kernels import dropout
from model.sites import Site


class MiSS(LowRank):
    """f(x) + Dᵀ (the sum of the pieces of dropout(x)); foldable into the weight."""

    works_on = ("Linear",)
    keys = {"miss_block": "miss_block"}
    peft_type, peft = "MISS", {"r": "r", "dropout": "miss_dropout"}

    @dataclass(frozen=True)
    class Options:
        r: Size | list[Size] = 64  # rows of D; a list: one for each layer
        dropout: Dropout = training(0.0)

    def __init__(self, options: Options, site: Site):
        super().__init__()
        if options.r > site.in_features:
            raise UserError(f"r = {options.r}: the Linear's input has {site.in_features} features")
        self.options, self.in_features = options, site.in_features
        self.miss_block = nn.Parameter(torch.zeros(options.r, site.out_features))

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        r = self.options.r
        x = dropout(x, self.options.dropout, self.training)
        pieces = F.pad(x, (0, -x.shape[-1] % r)).unflatten(-1, (-1, r))
        return y + pieces.sum(dim=-2) @ self.cast(self.miss_block, x)

    # ---- files, merging, sums

    def factors(self) -> tuple[Tensor, Tensor]:
        eye = torch.eye(self.options.r, device=self.miss_block.device)
        A = eye.repeat(1, -(-self.in_features // len(eye)))[:, : self.in_features]
        return A, self.miss_block.T
