"""BitFit (Ben Zaken et al. 2022): only the biases are trained.

    x ── f ── + (b' - b) ── y          b' starts at the base's bias b

Where a Linear or norm has no bias (LLaMA has none at all), b' starts at zero, and merging gives a Linear one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.base import Adapter
from files.errors import UserError


class BitFit(Adapter):
    """f(x) - b + b'; foldable into the bias."""

    works_on = ("Linear", "norm")

    @dataclass(frozen=True)
    class Options:
        pass

    def __init__(self, options: Options, site: nn.Module):
        super().__init__()
        self.options, self.on_norm = options, site.kind == "norm"
        self.bias = nn.Parameter(
            torch.zeros(site.out_features)
            if site.bias is None
            else site.bias.detach().float().clone()
        )

    def after(self, y: Tensor, x: Tensor, f: nn.Module) -> Tensor:
        moved = self.bias if f.bias is None else self.bias - f.bias.float()
        return y + moved.to(y.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if bias is None and self.on_norm:
            raise UserError("this norm has no bias, and cannot get one")
        return weight, self.bias

    def start(self, site: nn.Module) -> dict[str, Tensor | float]:
        return {"bias": 0.0 if site.bias is None else site.bias.detach().float()}

    def key(self, leaf: str) -> str:
        return leaf
