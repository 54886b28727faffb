"""BitFit (Ben Zaken et al. 2022): only the biases are trained.

    x ── f ── + (b' - b) ── y          b' starts at the base's bias b

Where a Linear or norm has no bias (LLaMA has none at all), b' starts at zero; merging gives a
Linear one.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from adapters.base import Adapter, Folded
from files.errors import UserError
from model.sites import Site


class BitFit(Adapter):
    """f(x) - b + b'; foldable into the bias."""

    works_on = ("Linear", "norm")
    keys = {"bias": "bias"}

    @dataclass(frozen=True)
    class Options:
        pass

    def __init__(self, options: Options, site: Site):
        super().__init__()
        self.options = options
        none = site.bias is None
        start = torch.zeros(site.out_features) if none else site.bias.detach().float().clone()
        self.bias = nn.Parameter(start)

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        moved = self.bias if f.bias is None else self.bias - f.bias.float()
        return y + moved.to(y.dtype)

    # ---- files, merging, sums

    def fold(self, f: Folded) -> Folded:
        f.check_base(self, "bias")
        if f.bias is None and f.site.kind == "norm":
            raise UserError("this norm has no bias, and cannot get one")
        return replace(f, bias=self.bias)

    def start(self, site: Site) -> dict[str, Tensor | float]:
        return {"bias": 0.0 if site.bias is None else site.bias.detach().float()}
