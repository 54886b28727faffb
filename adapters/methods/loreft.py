"""LoReFT (Wu et al. 2024, eq. 2): hidden states of the prompt are changed within a low-rank space.

    block ── h ── + ── h'      h' = h + Rᵀ (W h + b - R h)      form = "loreft"
             └── Φ ─┘
    block ── h ── + ── h'      h' = h + Rᵀ (W h + b)            form = "direft" (eq. 3)
             └── Φ ─┘

At the first `first` and the last `last` tokens of the prompt, at a block's output. R [r, C] has
orthonormal rows (of a trained matrix, by QR), in DiReFT any; W is [r, C], b [r]. Training starts at
the base: W = R, or in DiReFT R = 0; the paper's code draws both at random. In training a row's
prompt is what comes before its first token with a loss.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from adapters.base import Adapter, Size
from files.errors import UserError
from files.typed import Range
from model.sites import Site

Count = Annotated[int, Range(0, 2**20)]


class LoReFT(Adapter):
    """h + Rᵀ (W h + b - R h) at some tokens of the prompt."""

    works_on = ("block",)

    @dataclass(frozen=True)
    class Options:
        r: Size | list[Size] = 8  # rows of R and W; a list: one for each layer
        first: Count = 7  # tokens at the beginning of the prompt
        last: Count = 7  # and at its end
        form: Literal["loreft", "direft"] = "loreft"

        def check(self) -> None:
            if not self.first + self.last:
                raise UserError("first = 0 and last = 0 name no token of the prompt")

    def __init__(self, options: Options, site: Site):
        super().__init__()
        self.options, self.ends = options, options.last
        C = site.out_features
        if options.r > C:
            raise UserError(f"r = {options.r}: hidden states have {C} features")
        self.reft_R = nn.Parameter(torch.zeros(options.r, C))
        self.reft_W = nn.Parameter(torch.empty(options.r, C))
        self.reft_b = nn.Parameter(torch.zeros(options.r))
        nn.init.kaiming_uniform_(self.reft_W, a=math.sqrt(5))
        if options.form == "loreft":
            nn.init.normal_(self.reft_R)
            self.reft_R.data = self.rotation().detach()
            self.reft_W.data = self.rotation().detach()  # to the bit

    def rotation(self) -> Tensor:
        """R [r, C] in float32."""
        if self.options.form == "direft":
            return self.reft_R
        Q, upper = torch.linalg.qr(self.reft_R.T)
        return (Q * upper.diagonal().sign()).T  # of orthonormal rows, these rows

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        """y: hidden states [B, T, C]. x: their places in the prompt (Tokens.places)."""
        number, left = x.unbind(-1)
        chosen = (number >= 0) & (left >= 0)
        chosen &= (number < self.options.first) | (left < self.options.last)
        R = self.rotation().to(y)
        W = self.cast(self.reft_W, y)
        change = self.linear(y, W - R if self.options.form == "loreft" else W, self.reft_b) @ R
        return torch.where(chosen[..., None], y + change, y)

    # ---- sums

    def start(self, site: Site) -> dict[str, Tensor]:
        if self.options.form == "direft":
            return {}
        R = self.rotation().detach()
        return {"reft_R": R, "reft_W": R}
