"""LoRA (Hu et al. 2021, eq. 3): a low-rank update beside a Linear.

    x ─┬── W ──────────── + ── y          y = W x + (alpha / r) · B A x
       └── A ── B ── s ───┘

A is [r, in], kaiming; B is [out, r], zeros, so training starts at the base. The paper's eq. 6.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import Adapter
from model.errors import UserError


class LoRA(Adapter):
    """y + (alpha / r) · B A dropout(x); foldable into the weight."""

    linear_only = True

    @dataclass(frozen=True)
    class Options:
        r: int = 8  # rank
        alpha: float = 16.0
        dropout: float = 0.0

        def check(self) -> None:
            if self.r < 1:
                raise UserError(f"r = {self.r}: the rank must be at least 1")
            if not 0 <= self.dropout < 1:
                raise UserError(f"dropout = {self.dropout} is not between 0 and 1")

    def __init__(self, options: Options, site: nn.Module):
        super().__init__()
        self.options = options
        self.scale = options.alpha / options.r
        self.lora_A = nn.Parameter(torch.empty(options.r, site.in_features))
        self.lora_B = nn.Parameter(torch.zeros(site.out_features, options.r))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def after(self, y: Tensor, x: Tensor, f: nn.Module) -> Tensor:
        x = F.dropout(x, self.options.dropout, self.training)
        return y + self.scale * self.linear(self.linear(x, self.lora_A), self.lora_B)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.scale * self.lora_B @ self.lora_A, bias
