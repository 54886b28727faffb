"""LoRA (Hu et al. 2021, eq. 3): a low-rank update beside a Linear.

    x ─┬── W ──────────── + ── y      y = W x + s · B A x      s = alpha / r, or alpha / sqrt(r)
       └── A ── B ── s ───┘                                    (rsLoRA, Kalajdzievski 2023)

A is [r, in], kaiming; B is [out, r], zeros, so training starts at the base. The paper's eq. 6. With
bias = true, B has a trained bias [out] as well. On an embedding, row i of the table becomes
E[i] + s · B A[:, i], for the input alone: a tied head stays. A gate (UniPELT, Mao et al. 2022)
multiplies s by sigmoid(g · x) for each token.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import Adapter, Dropout, Folded, Size, Sum, Summable, Weighted, training
from files.errors import UserError
from files.typed import Range
from model.kernels import dropout
from model.language import LanguageModel
from model.sites import Embedding, Site


class LowRank(Summable):
    """A method that adds B A x: foldable into the weight, and summable in one LoRA."""

    leaves = ("lora_A", "lora_B")  # a LoRA's parameters at such a site

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] of the same update as a LoRA with s = 1."""
        raise NotImplementedError

    def fold(self, f: Folded) -> Folded:
        A, B = self.factors()
        return replace(f, weight=f.weight + B @ A)

    def side_by_side(self, weighted: Weighted) -> Sum:
        """One LoRA of all ranks, weights and scales in B."""
        if any(getattr(adapter, "lora_gate", None) is not None for adapter, _ in weighted):
            raise UserError("LoRA with a gate cannot be added to another")
        factors = [(*adapter.factors(), weight) for adapter, weight in weighted]
        A = torch.cat([A for A, _, _ in factors])
        B = torch.cat([weight * B for _, B, weight in factors], dim=1)
        biases = [
            weight * adapter.scale * adapter.lora_B_bias
            for adapter, weight in weighted
            if getattr(adapter, "lora_B_bias", None) is not None
        ]
        tensors = dict(zip(self.leaves, (A, B), strict=True))
        tensors |= {"lora_B_bias": sum(biases)} if biases else {}
        return "lora", LoRA.Options(r=len(A), alpha=float(len(A)), bias=bool(biases)), tensors


class LoRA(LowRank):
    """y + s · B A dropout(x); foldable into the weight."""

    works_on = ("Linear", "embedding")
    keys = {"lora_B_bias": "lora_B.bias"}

    @dataclass(frozen=True)
    class Options:
        r: Size | list[Size] = 8  # rank; a list: one for each layer
        alpha: float = 16.0
        dropout: Dropout = training(0.0)
        rslora: bool = False  # s = alpha / sqrt(r)
        bias: bool = False
        gate: bool = False
        # learning rate of B, a multiple of A's: LoRA+ (Hayou et al. 2024), which has 16
        b_rate: Annotated[float, Range(0, open=True)] = training(1.0)

        @property
        def scale(self) -> float:
            return self.alpha / (math.sqrt(self.r) if self.rslora else self.r)

    @classmethod
    def build(cls, options: list, sites: list[Site], model: LanguageModel) -> list[Adapter]:
        kinds = [EmbeddingLoRA if isinstance(site, Embedding) else cls for site in sites]
        return [kind(o, site) for kind, o, site in zip(kinds, options, sites, strict=True)]

    def __init__(self, options: Options, site: Site):
        super().__init__()
        self.options, self.scale = options, options.scale
        self.rates = dict.fromkeys(("lora_B", "lora_B_bias"), options.b_rate)
        self.lora_A = nn.Parameter(torch.empty(options.r, site.in_features))
        self.lora_B = nn.Parameter(torch.zeros(site.out_features, options.r))
        self.lora_B_bias = nn.Parameter(torch.zeros(site.out_features)) if options.bias else None
        self.lora_gate = nn.Parameter(torch.zeros(1, site.in_features)) if options.gate else None
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def update(self, x: Tensor) -> Tensor:
        """s · B A x of x [B, T, in]."""
        inner = self.scale * self.linear(x, self.lora_A)  # s here: r numbers a token
        bias = None if self.lora_B_bias is None else self.scale * self.lora_B_bias
        return self.linear(inner, self.lora_B, bias)

    def delta(self, x: Tensor) -> Tensor:
        """s · B A dropout(x), times the gate if there is one."""
        delta = self.update(dropout(x, self.options.dropout, self.training))
        if self.lora_gate is None:
            return delta
        return torch.sigmoid(self.linear(x, self.lora_gate)) * delta

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        return y + self.delta(x)

    # ---- files, merging, sums

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_A, self.scale * self.lora_B

    def fold(self, f: Folded) -> Folded:
        if self.lora_gate is not None:
            raise UserError("its gate depends on the token")
        f = super().fold(f)
        if self.lora_B_bias is None:
            return f
        return replace(f, bias=self.scale * self.lora_B_bias + (0 if f.bias is None else f.bias))


class EmbeddingLoRA(LowRank):
    """E[i] + s · B A[:, i] for the token i."""

    works_on = ("embedding",)
    leaves = ("lora_embedding_A", "lora_embedding_B")
    keys = {leaf: leaf for leaf in leaves}

    def __init__(self, options: LoRA.Options, site: Site):
        super().__init__()
        if options.bias or options.gate or options.dropout or options.b_rate != 1.0:
            raise UserError(
                "LoRA on an embedding has neither bias, gate, dropout nor b_rate: there A starts "
                "at zero"
            )
        self.options, self.scale = options, options.scale
        self.lora_embedding_A = nn.Parameter(torch.zeros(options.r, site.in_features))
        self.lora_embedding_B = nn.Parameter(torch.randn(site.out_features, options.r))

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        delta = self.linear(F.embedding(x, self.lora_embedding_A.T), self.lora_embedding_B)
        return y + (self.scale * delta).to(y.dtype)

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.lora_embedding_A, self.scale * self.lora_embedding_B

    def fold(self, f: Folded) -> Folded:
        return replace(f, weight=f.weight + torch.mm(*reversed(self.factors())).T)
