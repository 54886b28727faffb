"""AdaLoRA (Zhang et al. 2023): an update in the form of singular values, whose rank is cut where it matters least.

    x ─┬── W ─────────────────── + ── y          y = W x + s · B diag(E) A x          s = alpha / init_r
       └── A ── · E ── B ── s ───┘

A [r, in] and B [out, r] are N(0, 0.02), E [r] zeros, so training starts at the base. A penalty keeps A and B near orthogonal (eq. 4). Each
triplet (a row of A, a value of E, a column of B) has an importance, smoothed sensitivity x uncertainty of |weight · gradient| (eq. 8 to 10);
from init_r on average per site, all but the most important ones of the whole model are set to zero, until target_r are left (eq. 12 and 13).
"""

import math
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import Adapter, Dropout, Size
from adapters.methods.lora import sum_of_updates
from files.errors import UserError
from files.typed import Range

Smoothing = Annotated[float, Range(0, 0.999999, open=True)]


class AdaLoRA(Adapter):
    """y + s · B (E · A dropout(x)); foldable into the weight."""

    works_on = ("Linear",)

    @dataclass(frozen=True)
    class Options:
        init_r: Size = 12  # rank of every site at first
        target_r: Size = 8  # rank of a site at the end, on average
        alpha: float = 32.0
        dropout: Dropout = 0.0
        warmup: Annotated[float, Range(0)] = 0.1  # share of the steps before the first cut
        final: Annotated[float, Range(0)] = 0.3  # share of the steps after the last cut
        every: Size = 10  # steps between cuts
        beta1: Smoothing = 0.85  # of the sensitivity
        beta2: Smoothing = 0.85  # of its uncertainty
        orthogonality: Annotated[float, Range(0)] = 0.5  # weight of the penalty

        def check(self) -> None:
            if self.target_r > self.init_r:
                raise UserError(
                    f"target_r = {self.target_r} should be at most init_r = {self.init_r}"
                )
            if self.warmup + self.final >= 1:
                raise UserError(
                    f"warmup = {self.warmup} and final = {self.final} should be shares of the "
                    "steps that leave some between them"
                )

    def __init__(self, options: Options, site: nn.Module):
        super().__init__()
        self.options = options
        self.scale = options.alpha / (
            options.init_r + 1e-5
        )  # the little number is in the files' arithmetic
        self.lora_A = nn.Parameter(torch.empty(options.init_r, site.in_features).normal_(std=0.02))
        self.lora_E = nn.Parameter(torch.zeros(options.init_r, 1))
        self.lora_B = nn.Parameter(torch.empty(site.out_features, options.init_r).normal_(std=0.02))
        for leaf, parameter in list(self.named_parameters()):
            for statistic in ("sensitivity", "uncertainty"):
                self.register_buffer(
                    f"{statistic}_{leaf}", torch.zeros_like(parameter), persistent=False
                )
        self.register_buffer(
            "kept", torch.ones(options.init_r, 1, dtype=torch.bool), persistent=False
        )

    def after(self, y: Tensor, x: Tensor, f: nn.Module) -> Tensor:
        x = F.dropout(x, self.options.dropout, self.training)
        return y + self.scale * self.linear(self.linear(x, self.lora_A * self.lora_E), self.lora_B)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] of the same update as a plain LoRA with s = 1, of the triplets that are left."""
        left = self.lora_E[:, 0] != 0
        left = left if left.any() else torch.ones_like(left)
        return (self.lora_A * self.lora_E)[left], self.scale * self.lora_B[:, left]

    def side_by_side(
        self, weighted: list[tuple[Adapter, float]]
    ) -> tuple[str, object, dict[str, Tensor]]:
        return sum_of_updates(weighted)

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return weight + self.scale * self.lora_B @ (self.lora_A * self.lora_E), bias

    def penalty(self) -> Tensor:
        """orthogonality x (‖A Aᵀ - 1‖ + ‖Bᵀ B - 1‖), the part of this site."""
        one = torch.eye(self.options.init_r, device=self.lora_A.device)
        return self.options.orthogonality * (
            (self.lora_A @ self.lora_A.T - one).norm() + (self.lora_B.T @ self.lora_B - one).norm()
        )

    @torch.no_grad()
    def observe(self) -> None:
        """Smooth |weight · gradient| and how much it varies."""
        for leaf, parameter in self.named_parameters():
            if parameter.grad is not None:
                now = (parameter * parameter.grad).abs()
                mean, spread = (
                    self.get_buffer(f"sensitivity_{leaf}"),
                    self.get_buffer(f"uncertainty_{leaf}"),
                )
                mean.lerp_(now, 1 - self.options.beta1)
                spread.lerp_((now - mean).abs(), 1 - self.options.beta2)

    def importance(self) -> Tensor:
        """Of each triplet [r]: that of its value in E, and the means of its row of A and its column of B."""
        A, E, B = (
            self.get_buffer(f"sensitivity_{leaf}") * self.get_buffer(f"uncertainty_{leaf}")
            for leaf in ("lora_A", "lora_E", "lora_B")
        )
        return E[:, 0] + A.mean(dim=1) + B.mean(dim=0)

    @classmethod
    @torch.no_grad()
    def after_step(cls, adapters: list["AdaLoRA"], step: int, total: int) -> None:
        options = adapters[0].options
        start = min(math.ceil(options.warmup * total), total - 1)
        end = max(start + 1, total - math.ceil(options.final * total))
        if step <= end:
            for adapter in adapters:
                adapter.observe()
        if (start < step < end and step % options.every == 0) or step == end:
            left = (1 - (step - start) / (end - start)) ** 3  # the budget falls with the cube
            budget = round(
                sum(
                    one.options.target_r + (one.options.init_r - one.options.target_r) * left
                    for one in adapters
                )
            )
            importance = torch.cat(
                [adapter.importance().to(adapters[0].lora_E.device) for adapter in adapters]
            )
            kept = torch.zeros_like(importance, dtype=torch.bool)
            kept[importance.argsort(descending=True, stable=True)[:budget]] = True
            for adapter, mask in zip(
                adapters, kept.split([adapter.options.init_r for adapter in adapters]), strict=True
            ):
                adapter.kept = mask[:, None].to(adapter.lora_E.device)
        for adapter in adapters:
            if step >= end or (
                start < step and step % options.every == 0
            ):  # between cuts, a value may grow back and be kept the next time
                adapter.lora_E.masked_fill_(~adapter.kept, 0.0)

    def key(self, leaf: str) -> str:
        return leaf
