"""VeRA (Kopiczko et al. 2024, eq. 2): one frozen random pair of matrices for all sites, and two trained vectors at each.

    x ─┬── W ─────────────────────── + ── y          y = W x + diag(b) B diag(d) A x
       └── A ── · d ── B ── · b ─────┘

A [r, largest in] and B [largest out, r] are random, shared and cut to each site's size; d [r] starts at 0.1, b [out] at zero, so training
starts at the base. Where there is a fused Linear (BLOOM's qkv) it is one site.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import PREFIX, Adapter, Dropout, Size
from adapters.methods.lora import sum_of_updates
from files.errors import UserError

A_KEY, B_KEY = "base_model.vera_A", "base_model.vera_B"


def projection(shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Kaiming uniform: ± sqrt(6 / columns), of a size that the columns decide."""
    bound = math.sqrt(6 / shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


class VeRA(Adapter):
    """y + b · B (d · A dropout(x)); foldable into the weight."""

    works_on = ("Linear",)

    @dataclass(frozen=True)
    class Options:
        r: Size = 256
        dropout: Dropout = 0.0
        d_start: float = 0.1
        seed: int = 0  # of the shared projections

    @classmethod
    def build(cls, options: list, sites: list[nn.Module], model: nn.Module) -> list["VeRA"]:
        if any(one != options[0] for one in options):
            raise UserError(
                "the sites of a VeRA adapter share their projections and cannot have different options"
            )
        generator = torch.Generator().manual_seed(options[0].seed)
        A = projection((options[0].r, max(site.in_features for site in sites)), generator)
        B = projection((max(site.out_features for site in sites), options[0].r), generator)
        shared = nn.Module()
        shared.register_buffer("A", A)
        shared.register_buffer("B", B)
        return [cls(one, site, shared) for one, site in zip(options, sites, strict=True)]

    def __init__(self, options: Options, site: nn.Module, shared: nn.Module):
        super().__init__()
        self.options, self.shared = options, shared
        self.fan_in, self.fan_out = site.in_features, site.out_features
        self.vera_lambda_d = nn.Parameter(torch.full((options.r,), options.d_start))
        self.vera_lambda_b = nn.Parameter(torch.zeros(site.out_features))

    def after(self, y: Tensor, x: Tensor, f: nn.Module) -> Tensor:
        x = F.dropout(x, self.options.dropout, self.training)
        inner = self.vera_lambda_d.to(x.dtype) * self.linear(x, self.shared.A[:, : self.fan_in])
        return y + self.vera_lambda_b.to(x.dtype) * self.linear(
            inner, self.shared.B[: self.fan_out]
        )

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] of the same update as a plain LoRA with s = 1."""
        A, B = (
            self.shared.A.to(self.vera_lambda_d.device),
            self.shared.B.to(self.vera_lambda_b.device),
        )
        return self.vera_lambda_d[:, None] * A[:, : self.fan_in], self.vera_lambda_b[:, None] * B[
            : self.fan_out
        ]

    def side_by_side(
        self, weighted: list[tuple[Adapter, float]]
    ) -> tuple[str, object, dict[str, Tensor]]:
        return sum_of_updates(weighted)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        A, B = self.factors()
        return weight + B @ A, bias

    def start(self, site: nn.Module) -> dict[str, Tensor]:
        return {"shared.A": self.shared.A, "shared.B": self.shared.B}

    @classmethod
    def to_file(cls, adapters: dict[str, Adapter]) -> dict[str, Tensor]:
        first = next(iter(adapters.values()))
        found = {A_KEY: first.shared.A, B_KEY: first.shared.B}
        for path, one in adapters.items():
            found |= {
                f"{PREFIX}{path}.vera_lambda_d": one.vera_lambda_d,
                f"{PREFIX}{path}.vera_lambda_b": one.vera_lambda_b,
            }
        return found
