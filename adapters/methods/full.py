"""A module trained as a whole: float32 copies of its weight and bias (PEFT's modules_to_save).

    x ── f with W', b' ── y          W' and b' start at W and b, the base's

On a tied embedding or head, only the one that is named changes; the other keeps the base's weight.
"""

from dataclasses import dataclass, replace

from torch import Tensor, nn

from adapters.base import Adapter, Folded
from files.errors import UserError
from model.fsdp import whole
from model.sites import Site


class Full(Adapter):
    """f with trained copies of its weight and bias; foldable into the weight."""

    works_on = ("Linear", "embedding", "norm")
    keys = {"weight": "weight", "bias": "bias"}

    @dataclass(frozen=True)
    class Options:
        pass

    def __init__(self, options: Options, site: Site):
        super().__init__()
        self.options = options
        if site.weight is None:
            raise UserError(
                "this model's norms have neither weight nor bias: there is nothing to train in them"
            )
        self.weight = nn.Parameter(whole(site.weight).detach().float().clone())
        self.bias = None if site.bias is None else nn.Parameter(site.bias.detach().float().clone())

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        weight = self.weight - f.weight.float()
        bias = None if self.bias is None else self.bias - f.bias.float()
        change = f.compute(x, weight, bias)  # linear in both: other adapters at this site stay
        return y + change.to(y.dtype)

    # ---- files, merging, sums

    def fold(self, f: Folded) -> Folded:
        """The copies, or what they differ from the base by if another adapter changed it."""
        values = {}
        for leaf, base in zip(("weight", "bias"), f.base, strict=True):
            own, now = getattr(self, leaf), getattr(f, leaf)
            if own is not None:
                values[leaf] = own if now is base else now + (own - base)
        return replace(f, **values)

    def start(self, site: Site) -> dict[str, Tensor]:
        return {leaf: whole(getattr(site, leaf)).detach().float() for leaf in self.state_dict()}
