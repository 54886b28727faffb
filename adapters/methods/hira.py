"""HiRA (Huang et al. 2025, eq. 5): the weight itself, entry by entry times a low-rank matrix.

    x ─┬── W ──────────────── + ── y      y = W x + (W ⊙ B A) x
       └── W ⊙ B A ───────────┘

A is [r, in], kaiming; B is [out, r], zeros, so training starts at the base. The update has the rank
of W, not of B A. W ⊙ B A is made in every pass, a matrix as large as W: merge before answering.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import Dropout, Folded, Size, Sum, Summable, Weighted, training
from model.kernels import dropout
from model.sites import Site


class HiRA(Summable):
    """f(x) + (W ⊙ B A) dropout(x); foldable into the weight."""

    works_on = ("Linear",)
    keys = {"hira_A": "hira_A", "hira_B": "hira_B"}
    peft_type, peft = "HIRA", {"r": "r", "dropout": "hira_dropout"}

    @dataclass(frozen=True)
    class Options:
        r: Size | list[Size] = 32  # rank of B A; a list: one for each layer
        dropout: Dropout = training(0.0)

    def __init__(self, options: Options, site: Site):
        super().__init__()
        self.options = options
        self.hira_A = nn.Parameter(torch.empty(options.r, site.in_features))
        self.hira_B = nn.Parameter(torch.zeros(site.out_features, options.r))
        nn.init.kaiming_uniform_(self.hira_A, a=math.sqrt(5))

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        factor = self.cast(self.hira_B, x) @ self.cast(self.hira_A, x)
        x = dropout(x, self.options.dropout, self.training)
        return y + F.linear(x, f.weight.to(x) * factor)

    # ---- files, merging, sums

    def fold(self, f: Folded) -> Folded:
        return replace(f, weight=f.weight + f.base[0] * (self.hira_B @ self.hira_A))

    def side_by_side(self, weighted: Weighted) -> Sum:
        """One HiRA of all ranks, the weights in B."""
        A = torch.cat([adapter.hira_A for adapter, _ in weighted])
        B = torch.cat([weight * adapter.hira_B for adapter, weight in weighted], dim=1)
        return "hira", HiRA.Options(r=len(A)), {"hira_A": A, "hira_B": B}
