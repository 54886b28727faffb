"""LoRA (Hu et al. 2021, eq. 3): a low-rank update beside a Linear.

    x ─┬── W ──────────── + ── y          y = W x + s · B A x          s = alpha / r, or alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023)
       └── A ── B ── s ───┘

A is [r, in], kaiming; B is [out, r], zeros, so training starts at the base. The paper's eq. 6. With bias = true, B has a trained
bias [out] as well. On an embedding, row i of the table becomes E[i] + s · B A[:, i], for the input alone: a tied head stays.
A gate (UniPELT, Mao et al. 2022) multiplies s by sigmoid(g · x) for each token.
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import Adapter, Dropout, Size
from files.errors import UserError
from files.typed import Range
from model.sites import Embedding


class LoRA(Adapter):
    """y + s · B A dropout(x); foldable into the weight."""

    works_on = ("Linear", "embedding")

    @dataclass(frozen=True)
    class Options:
        r: Size | list[Size] = 8  # rank; a list: one for each layer
        alpha: float = 16.0
        dropout: Dropout = 0.0
        rslora: bool = False  # s = alpha / sqrt(r)
        bias: bool = False
        gate: bool = False
        # learning rate of B, a multiple of A's: LoRA+ (Hayou et al. 2024), which has 16
        b_rate: Annotated[float, Range(0, open=True)] = 1.0

        @property
        def scale(self) -> float:
            return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    @classmethod
    def build(cls, options: list, sites: list[nn.Module], model: nn.Module) -> list[Adapter]:
        return [
            EmbeddingLoRA(one, site) if isinstance(site, Embedding) else cls(one, site)
            for one, site in zip(options, sites, strict=True)
        ]

    def __init__(self, options: Options, site: nn.Module):
        super().__init__()
        self.options, self.scale = options, options.scale
        self.lora_A = nn.Parameter(torch.empty(options.r, site.in_features))
        self.lora_B = nn.Parameter(torch.zeros(site.out_features, options.r))
        self.lora_B_bias = nn.Parameter(torch.zeros(site.out_features)) if options.bias else None
        self.lora_gate = nn.Parameter(torch.zeros(1, site.in_features)) if options.gate else None
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def delta(self, x: Tensor) -> Tensor:
        """s · B A dropout(x)."""
        dropped = F.dropout(x, self.options.dropout, self.training)
        delta = self.scale * self.linear(
            self.linear(dropped, self.lora_A), self.lora_B, self.lora_B_bias
        )
        return (
            delta
            if self.lora_gate is None
            else torch.sigmoid(self.linear(x, self.lora_gate)) * delta
        )

    def after(self, y: Tensor, x: Tensor, f: nn.Module) -> Tensor:
        return y + self.delta(x)

    def rate_of(self, leaf: str) -> float:
        return self.rate * (self.options.b_rate if leaf.startswith("lora_B") else 1.0)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] of the same update with s = 1."""
        return self.lora_A, self.scale * self.lora_B

    def side_by_side(
        self, weighted: list[tuple[Adapter, float]]
    ) -> tuple[str, object, dict[str, Tensor]]:
        return sum_of_updates(weighted)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.lora_gate is not None:
            raise UserError("its gate depends on the token")
        A, B = self.factors()
        if self.lora_B_bias is not None:
            bias = self.scale * self.lora_B_bias + (0 if bias is None else bias)
        return weight + B @ A, bias

    def key(self, leaf: str) -> str:
        return "lora_B.bias" if leaf == "lora_B_bias" else f"{leaf}.weight"


def sum_of_updates(weighted: list[tuple[Adapter, float]]) -> tuple[str, object, dict[str, Tensor]]:
    """One LoRA that adds the weighted sum of low-rank updates: their ranks side by side, weights and scales in B. Raises UserError."""
    if any(getattr(one, "lora_gate", None) is not None for one, _ in weighted):
        raise UserError("LoRA with a gate cannot be added to another")
    factors = [(*one.factors(), weight) for one, weight in weighted]
    A = torch.cat([A for A, _, _ in factors])
    B = torch.cat([weight * B for _, B, weight in factors], dim=1)
    biases = [
        weight * one.scale * one.lora_B_bias
        for one, weight in weighted
        if getattr(one, "lora_B_bias", None) is not None
    ]
    options = LoRA.Options(r=len(A), alpha=float(len(A)), bias=bool(biases))
    return (
        "lora",
        options,
        {"lora_A": A, "lora_B": B} | ({"lora_B_bias": sum(biases)} if biases else {}),
    )


class EmbeddingLoRA(Adapter):
    """E[i] + s · B A[:, i] for the token i."""

    works_on = ("embedding",)

    def __init__(self, options: LoRA.Options, site: nn.Module):
        super().__init__()
        if options.bias or options.gate or options.dropout or options.b_rate != 1.0:
            raise UserError(
                "LoRA on an embedding has neither bias, gate, dropout nor b_rate: there A starts at zero"
            )
        self.options, self.scale = options, options.scale
        self.lora_embedding_A = nn.Parameter(torch.zeros(options.r, site.in_features))
        self.lora_embedding_B = nn.Parameter(torch.randn(site.out_features, options.r))

    def after(self, y: Tensor, x: Tensor, f: nn.Module) -> Tensor:
        delta = self.linear(F.embedding(x, self.lora_embedding_A.T), self.lora_embedding_B)
        return y + (self.scale * delta).to(y.dtype)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.scale * (self.lora_embedding_B @ self.lora_embedding_A).T, bias

    def key(self, leaf: str) -> str:
        return leaf
