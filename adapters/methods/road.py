"""RoAd (Liao & Monz 2024, eq. 3 and 4): pairs of the output's features are rotated and scaled.

    x ── f ── R ── y        (y_i)   (α₁ cos θ₁   -α₂ sin θ₂) (f_i)
                            (y_j) = (α₃ sin θ₃    α₄ cos θ₄) (f_j)      for every pair (i, j)

road_1 has one θ and α a pair, road_2 two (one for each of y_i and y_j), road_4 four. θ starts at 0
and α at 1, the base. In each group of `group_size` features the first half pairs with the second.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from adapters.base import Adapter, Folded
from files.errors import UserError
from files.typed import Range
from model.sites import Site

COUNTS = {"road_1": 1, "road_2": 2, "road_4": 4}  # variant -> angles of a pair


class RoAd(Adapter):
    """R f(x), the bias too; foldable into the weight."""

    works_on = ("Linear",)
    keys = {"road_theta": "road_theta", "road_alpha": "road_alpha"}
    peft_type, peft = "ROAD", {"variant": "variant", "group_size": "group_size"}

    @dataclass(frozen=True)
    class Options:
        variant: Literal["road_1", "road_2", "road_4"] = "road_2"
        group_size: Annotated[int, Range(2, 2**20)] = 64

    def __init__(self, options: Options, site: Site):
        super().__init__()
        self.options, group = options, options.group_size
        if group % 2 or site.out_features % group:
            raise UserError(
                f"group_size = {group} should be even and divide the Linear's output of "
                f"{site.out_features} features"
            )
        count = COUNTS[options.variant] * site.out_features // 2
        self.road_theta = nn.Parameter(torch.zeros(count))
        self.road_alpha = nn.Parameter(torch.ones(count))

    def columns(self) -> tuple[Tensor, Tensor]:
        """(α cos θ, α sin θ) of each output feature [groups, 2, half] in float32."""
        half, variant = self.options.group_size // 2, self.options.variant
        theta, alpha = self.road_theta, self.road_alpha
        if variant == "road_4":  # of a group first those of the cosines, then those of the sines
            theta, alpha = (t.view(-1, 2, 2, half).unbind(1) for t in (theta, alpha))
            return alpha[0] * theta[0].cos(), alpha[1] * theta[1].sin()
        theta, alpha = (t.view(-1, COUNTS[variant], half) for t in (theta, alpha))
        cosines, sines = alpha * theta.cos(), alpha * theta.sin()
        return cosines.expand(-1, 2, -1), sines.expand(-1, 2, -1)

    def rotated(self, y: Tensor) -> Tensor:
        """R y of y [..., out]."""
        cosines, sines = (column.to(y) for column in self.columns())
        pairs = y.unflatten(-1, cosines.shape)
        first, second = pairs.unbind(-2)
        return (pairs * cosines + torch.stack((-second, first), dim=-2) * sines).flatten(-3)

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        return self.rotated(y)

    # ---- files, merging, sums

    def fold(self, f: Folded) -> Folded:
        bias = None if f.bias is None else self.rotated(f.bias)
        return replace(f, weight=self.rotated(f.weight.T).T, bias=bias)

    def start(self, site: Site) -> dict[str, float]:
        return {"road_alpha": 1.0}
