"""VeRA (Kopiczko et al. 2024, eq. 2): shared frozen random matrices, two trained vectors a site.

    x ─┬── W ─────────────────────── + ── y          y = W x + diag(b) B diag(d) A x
       └── A ── · d ── B ── · b ─────┘

A [r, largest in] and B [largest out, r] are random, shared and cut to each site's size; d [r]
starts at 0.1, b [out] at zero, so training starts at the base. A fused Linear (BLOOM's qkv) is one
site.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.base import PREFIX, Adapter, Dropout, Size, training
from adapters.methods.lora import LowRank
from files.errors import UserError
from model.kernels import dropout
from model.language import LanguageModel
from model.sites import Site

A_KEY, B_KEY = "base_model.vera_A", "base_model.vera_B"


class VeRA(LowRank):
    """y + b · B (d · A dropout(x)); foldable into the weight."""

    works_on = ("Linear",)
    peft_type = "VERA"
    peft = {
        "r": "r", "dropout": "vera_dropout", "d_start": "d_initial", "seed": "projection_prng_key",
    }  # fmt: skip

    @dataclass(frozen=True)
    class Options:
        r: Size = 256
        dropout: Dropout = training(0.0)
        d_start: float = training(0.1)
        seed: int = 0  # of the shared projections

    @classmethod
    def build(cls, options: list, sites: list[Site], model: LanguageModel) -> list["VeRA"]:
        first = options[0]
        if any(o != first for o in options):
            raise UserError(
                "the sites of a VeRA adapter share their projections and cannot have different "
                "options"
            )
        A, B = projections(first.r, first.seed, sites)
        shared = nn.Module()
        shared.register_buffer("A", A)
        shared.register_buffer("B", B)
        return [cls(first, site, shared) for site in sites]

    def __init__(self, options: Options, site: Site, shared: nn.Module):
        super().__init__()
        self.options, self.shared = options, shared
        self.fan_in, self.fan_out = site.in_features, site.out_features
        self.vera_lambda_d = nn.Parameter(torch.full((options.r,), options.d_start))
        self.vera_lambda_b = nn.Parameter(torch.zeros(site.out_features))

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        x = dropout(x, self.options.dropout, self.training)
        A, B = self.projections(x)
        inner = self.vera_lambda_d.to(x.dtype) * self.linear(x, A)
        return y + self.vera_lambda_b.to(x.dtype) * self.linear(inner, B)

    def projections(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A and B cut to this site, in the dtype of x; without gradients all sites share a cast."""
        A, B = self.shared.A, self.shared.B
        if not torch.is_grad_enabled():
            A, B = self.cast(A, x, self.shared), self.cast(B, x, self.shared)
        return A[:, : self.fan_in], B[: self.fan_out]

    # ---- files, merging, sums

    def factors(self) -> tuple[Tensor, Tensor]:
        d, b = self.vera_lambda_d[:, None], self.vera_lambda_b[:, None]
        A, B = self.shared.A.to(d.device), self.shared.B.to(b.device)
        return d * A[:, : self.fan_in], b * B[: self.fan_out]

    def start(self, site: Site) -> dict[str, Tensor]:
        return {"shared.A": self.shared.A, "shared.B": self.shared.B}

    @classmethod
    def to_file(cls, adapters: dict[str, Adapter]) -> dict[str, Tensor]:
        shared = next(iter(adapters.values())).shared
        return {A_KEY: shared.A, B_KEY: shared.B} | {
            f"{PREFIX}{path}.{leaf}": getattr(adapter, leaf)
            for path, adapter in adapters.items()
            for leaf in ("vera_lambda_d", "vera_lambda_b")
        }


def projections(r: int, seed: int, sites: list[Site]) -> tuple[Tensor, Tensor]:
    """A [r, largest in] and B [largest out, r] of a seed, Kaiming uniform as in PEFT."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (r, max(s.in_features for s in sites)), (max(s.out_features for s in sites), r)
    bounds = [math.sqrt(6 / columns) for _, columns in shapes]
    return tuple(
        torch.empty(shape).uniform_(-bound, bound, generator=generator)
        for shape, bound in zip(shapes, bounds, strict=True)
    )
