"""AdapterFusion (Pfeiffer et al. 2021): an attention learns how much of each adapter a token needs.

    a₁ ── d₁ ─┐
    y  ── Q ──┼── softmax over i of (Q y) · (K dᵢ) ── weighs V dᵢ ── + ── y
    a₂ ── d₂ ─┘

dᵢ is what adapter i adds to y (eq. 2 and 3); the adapters stay frozen. Q, K, V are [C, C]; V starts
at the identity, so that training starts near the mean of the adapters. A fusion sits where its
members do:

    attach(model, "fusion", name="both", of=["math", "code"])
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.base import Adapter
from files.errors import UserError
from model.language import LanguageModel
from model.sites import Site


class Fusion(Adapter):
    """y + sum over i of softmax((Q y) · (K dᵢ)) V dᵢ."""

    starts_at_base, needs = False, "loaded adapters"

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
    def build(cls, options: list, sites: list[Site], model: LanguageModel) -> list["Fusion"]:
        for name in options[0].of:
            check_member(name, sites, model)
        return super().build(options, sites, model)

    def __init__(self, options: Options, site: Site):
        super().__init__()
        self.options, self.members = options, options.of
        C = site.out_features
        self.query = nn.Parameter(torch.empty(C, C).normal_(std=0.02))
        self.fusion_key = nn.Parameter(torch.empty(C, C).normal_(std=0.02))
        self.value = nn.Parameter(torch.eye(C))

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        changes = [f.adapters[name].after(y, x, f) - y for name in self.members]
        changes = torch.stack(changes, dim=-2)  # [B, T, n, C]
        query = self.linear(y, self.query)[..., None]  # [B, T, C, 1]
        scores = (self.linear(changes, self.fusion_key) @ query).float()  # [B, T, n, 1]
        mixed = (scores.softmax(dim=-2).to(y.dtype) * changes).sum(dim=-2)
        return y + self.linear(mixed, self.value)


def check_member(name: str, sites: list[Site], model: LanguageModel) -> None:
    """Raises UserError for an adapter that cannot be fused at these sites."""
    loaded = [site for site in model.modules() if name in getattr(site, "adapters", ())]
    if not loaded:
        raise UserError(
            f"no adapter {name!r} is loaded that could be fused: load it first "
            f"(--load {name}=FOLDER)"
        )
    if not all(name in site.adapters for site in sites):
        raise UserError(
            f"a fusion sits where its members do, and adapter {name!r} is at "
            f"{loaded[0].adapters[name].config.place()}: give those as sites = [...]"
        )
    members = [site.adapters[name] for site in sites]
    if any(not member.adds or member.changes_input for member in members):
        raise UserError(
            f"adapter {name!r} does more than to add to an output, so that it cannot be fused"
        )
