"""IA3 (Liu et al. 2022, section 3.3): trained vectors scale a Linear's output, or its input.

    x ── f ── · l ── y      y = l · f(x)      scales = "output": keys and values
    x ── · l ── f ── y      y = f(l · x)      scales = "input": the MLP's last Linear

l has one number for each feature and starts at 1, the base.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from adapters.base import Adapter, Folded
from model.sites import Site


class IA3(Adapter):
    """l · f(x), the bias too, or f(l · x); foldable into the weight."""

    works_on = ("Linear",)
    keys = {"ia3_l": "ia3_l"}

    @dataclass(frozen=True)
    class Options:
        scales: Literal["output", "input"] = "output"  # "input": what goes into the Linear

    def __init__(self, options: Options, site: Site):
        super().__init__()
        self.options = options
        self.changes_input = options.scales == "input"
        shape = (1, site.in_features) if self.changes_input else (site.out_features, 1)
        self.ia3_l = nn.Parameter(torch.ones(shape))

    def before(self, x: Tensor) -> Tensor:
        return x * self.ia3_l[0].to(x.dtype) if self.changes_input else x

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        return y if self.changes_input else y * self.ia3_l[:, 0].to(y.dtype)

    # ---- files, merging, sums

    def fold(self, f: Folded) -> Folded:
        if self.changes_input:
            return replace(f, inputs=(*f.inputs, lambda weight: weight * self.ia3_l[0]))
        bias = None if f.bias is None else f.bias * self.ia3_l[:, 0]
        return replace(f, weight=f.weight * self.ia3_l, bias=bias)

    def start(self, site: Site) -> dict[str, float]:
        return {"ia3_l": 1.0}
