"""A part of the model trained as a whole: a float32 copy of its own weight and bias takes their place (PEFT's modules_to_save).

    x ── f with W', b' ── y          W' and b' start at W and b, the base

On a tied embedding or head, only the one that is named changes; the other keeps the base's weight.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from adapters.base import Adapter
from files.errors import UserError
from model.fsdp import whole


class Full(Adapter):
    """f with trained copies of its weight and bias; foldable into the weight."""

    works_on = ("Linear", "embedding", "norm")

    @dataclass(frozen=True)
    class Options:
        pass

    def __init__(self, options: Options, site: nn.Module):
        super().__init__()
        self.options = options
        if site.weight is None:
            raise UserError(
                "this model's norms have neither weight nor bias: there is nothing to train in them"
            )
        self.weight = nn.Parameter(whole(site.weight).detach().float().clone())
        self.bias = None if site.bias is None else nn.Parameter(site.bias.detach().float().clone())

    def after(self, y: Tensor, x: Tensor, f: nn.Module) -> Tensor:
        change = (
            self.weight - f.weight.float(),
            None if self.bias is None else self.bias - f.bias.float(),
        )
        return y + f.compute(x, *change).to(
            y.dtype
        )  # linear in both, so that other adapters at this site stay

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.weight, self.bias

    def start(self, site: nn.Module) -> dict[str, Tensor]:
        return {leaf: whole(getattr(site, leaf)).detach().float() for leaf in self.state_dict()}

    def key(self, leaf: str) -> str:
        return leaf
