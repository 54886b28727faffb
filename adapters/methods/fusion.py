"""AdapterFusion (Pfeiffer et al. 2021): trained adapters stay frozen, and an attention learns how much of each a token needs.

    a₁ ── d₁ ─┐
    y  ── Q ──┼── softmax over i of (Q y) · (K dᵢ) ── weighs V dᵢ ── + ── y          dᵢ: what adapter i adds to y (eq. 2 and 3)
    a₂ ── d₂ ─┘

Q, K, V are [C, C]; V starts at 1, so that training starts near the mean of the adapters. A fusion sits where its members do:

    attach(model, "fusion", name="both", of=["math", "code"])
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.base import Adapter
from files.errors import UserError


class Fusion(Adapter):
    """y + sum over i of softmax((Q y) · (K dᵢ)) V dᵢ."""

    starts_at_base = False

    @dataclass(frozen=True)
    class Options:
        of: tuple[str, ...] = ()  # names of the adapters it fuses, loaded before

        def check(self) -> None:
            if len(self.of) < 2 or len(set(self.of)) != len(self.of):
                raise UserError(
                    f"of = {list(self.of)!r} should be the names of two adapters or more, each "
                    "once, loaded before (--load NAME=FOLDER)"
                )

    @classmethod
    def build(cls, options: list, sites: list[nn.Module], model: nn.Module) -> list["Fusion"]:
        for name in options[0].of:
            everywhere = [
                module for module in model.modules() if name in getattr(module, "adapters", ())
            ]
            if not everywhere:
                raise UserError(
                    f"no adapter {name!r} is loaded that could be fused: load it first (--load {name}=FOLDER)"
                )
            if not all(name in site.adapters for site in sites):
                raise UserError(
                    f"a fusion sits where its members do, and adapter {name!r} is at {everywhere[0].adapters[name].config.place()}: "
                    "give those as sites = [...]"
                )
            if any(
                not site.adapters[name].adds or site.adapters[name].changes_input for site in sites
            ):
                raise UserError(
                    f"adapter {name!r} does more than to add to an output, so that it cannot be fused"
                )
        return [cls(one, site) for one, site in zip(options, sites, strict=True)]

    def __init__(self, options: Options, site: nn.Module):
        super().__init__()
        self.options, self.members = options, options.of
        C = site.out_features
        self.query = nn.Parameter(torch.empty(C, C).normal_(std=0.02))
        self.fusion_key = nn.Parameter(torch.empty(C, C).normal_(std=0.02))
        self.value = nn.Parameter(torch.eye(C))

    def after(self, y: Tensor, x: Tensor, f: nn.Module) -> Tensor:
        changes = torch.stack(
            [f.adapters[name].after(y, x, f) - y for name in self.members], dim=-2
        )  # [B, T, n, C]
        scores = (
            self.linear(changes, self.fusion_key) @ self.linear(y, self.query)[..., None]
        ).float()  # [B, T, n, 1]
        mixed = (scores.softmax(dim=-2).to(y.dtype) * changes).sum(dim=-2)
        return y + self.linear(mixed, self.value)
