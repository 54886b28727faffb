"""IA3 (Liu et al. 2022, section 3.3): trained vectors scale what comes out of a Linear, or what goes into it.

    x ── f ── · l ── y          y = l · f(x)          scales = "output": keys and values
    x ── · l ── f ── y          y = f(l · x)          scales = "input": the inner activations of the MLP, in front of its last Linear

l is one number a feature and starts at 1, the base.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from adapters.base import Adapter


class IA3(Adapter):
    """l · f(x), the bias too, or f(l · x); foldable into the weight."""

    works_on = ("Linear",)

    @dataclass(frozen=True)
    class Options:
        scales: Literal["output", "input"] = "output"  # "input": what goes into the Linear

    def __init__(self, options: Options, site: nn.Module):
        super().__init__()
        self.options = options
        self.changes_input = options.scales == "input"
        self.ia3_l = nn.Parameter(
            torch.ones(site.out_features, 1)
            if options.scales == "output"
            else torch.ones(1, site.in_features)
        )

    def before(self, x: Tensor) -> Tensor:
        return x if self.options.scales == "output" else x * self.ia3_l[0].to(x.dtype)

    def after(self, y: Tensor, x: Tensor, f: nn.Module) -> Tensor:
        return y * self.ia3_l[:, 0].to(y.dtype) if self.options.scales == "output" else y

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.options.scales == "input":
            return weight * self.ia3_l, bias
        return weight * self.ia3_l, None if bias is None else bias * self.ia3_l[:, 0]

    def start(self, site: nn.Module) -> dict[str, float]:
        return {"ia3_l": 1.0}

    def key(self, leaf: str) -> str:
        return leaf
