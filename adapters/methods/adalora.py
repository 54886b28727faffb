"""AdaLoRA (Zhang et al. 2023): an update like singular values, cut where it matters least.

    x ─┬── W ─────────────────── + ── y      y = W x + s · B diag(E) A x      s = alpha / init_r
       └── A ── · E ── B ── s ───┘

A [r, in] and B [out, r] are N(0, 0.02), E [r] zeros, so training starts at the base. A penalty
keeps A and B near orthogonal (eq. 4). Each triplet (a row of A, a value of E, a column of B) has an
importance, smoothed sensitivity x uncertainty of |weight · gradient| (eq. 8 to 10). From init_r on
average per site, all but the most important triplets of the whole model are set to zero, until
target_r are left (eq. 12 and 13).
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor, nn

from adapters.base import Dropout, Folded, Scheduled, Size, training
from adapters.methods.lora import LowRank
from files.errors import UserError
from files.typed import Range
from model.kernels import dropout
from model.sites import Site

MEAN, SPREAD = "sensitivity", "uncertainty"  # buffers, of each parameter
Smoothing = Annotated[float, Range(0, 0.999999, open=True)]


class AdaLoRA(LowRank, Scheduled):
    """y + s · B (E · A dropout(x)); foldable into the weight."""

    works_on = ("Linear",)
    keys = {leaf: leaf for leaf in ("lora_A", "lora_E", "lora_B")}
    peft = {  # option -> field of PEFT's adapter_config.json
        "init_r": "init_r", "target_r": "target_r", "alpha": "lora_alpha",
        "dropout": "lora_dropout", "every": "deltaT", "beta1": "beta1", "beta2": "beta2",
        "orthogonality": "orth_reg_weight",
    }  # fmt: skip

    @dataclass(frozen=True)
    class Options:
        init_r: Size = 12  # rank of every site at first
        target_r: Size = 8  # rank of a site at the end, on average
        alpha: float = 32.0
        dropout: Dropout = training(0.0)
        warmup: Annotated[float, Range(0)] = training(0.1)  # share of steps before the first cut
        final: Annotated[float, Range(0)] = training(0.3)  # share of steps after the last cut
        every: Size = training(10)  # steps between cuts
        beta1: Smoothing = training(0.85)  # of the sensitivity
        beta2: Smoothing = training(0.85)  # of its uncertainty
        orthogonality: Annotated[float, Range(0)] = training(0.5)  # weight of the penalty

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

    def __init__(self, options: Options, site: Site):
        super().__init__()
        r = options.init_r
        self.options = options
        self.scale = options.alpha / (r + 1e-5)  # PEFT's files are scaled with this 1e-5, too
        self.lora_A = nn.Parameter(torch.empty(r, site.in_features).normal_(std=0.02))
        self.lora_E = nn.Parameter(torch.zeros(r, 1))
        self.lora_B = nn.Parameter(torch.empty(site.out_features, r).normal_(std=0.02))
        for leaf, parameter in list(self.named_parameters()):
            for statistic in (MEAN, SPREAD):
                zeros = torch.zeros_like(parameter)
                self.register_buffer(f"{statistic}_{leaf}", zeros, persistent=False)
        self.register_buffer("kept", torch.ones(r, 1, dtype=torch.bool), persistent=False)

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        x = dropout(x, self.options.dropout, self.training)
        return y + self.scale * self.linear(self.linear(x, self.lora_A * self.lora_E), self.lora_B)

    @classmethod
    def penalties(cls, adapters: list["AdaLoRA"]) -> list[Tensor]:
        """orthogonality x (‖A Aᵀ - 1‖ + ‖Bᵀ B - 1‖) of each site."""
        terms = []
        for stacked in alike(adapters):
            A = torch.stack([adapter.lora_A for adapter in stacked])
            B = torch.stack([adapter.lora_B.T for adapter in stacked])
            terms.append(stacked[0].options.orthogonality * (from_identity(A) + from_identity(B)))
        return terms

    @classmethod
    @torch.no_grad()
    def after_step(cls, adapters: list["AdaLoRA"], step: int, total: int) -> None:
        """Smooth the importance, and between warm-up and end cut what is over the budget."""
        options = adapters[0].options
        start = min(math.ceil(options.warmup * total), total - 1)
        end = max(start + 1, total - math.ceil(options.final * total))
        if step <= end:
            cls.observe(adapters)
        if (start < step < end and step % options.every == 0) or step == end:
            left = (1 - (step - start) / (end - start)) ** 3  # the budget falls with the cube
            keep_most_important(adapters, left)
        # Between cuts a value may grow back and be kept the next time.
        if step >= end or (start < step and step % options.every == 0):
            for stacked in alike(adapters):
                kept = torch.stack([adapter.kept for adapter in stacked])
                values = [adapter.lora_E for adapter in stacked]
                torch._foreach_copy_(values, torch.stack(values).where(kept, 0.0).unbind())

    @classmethod
    @torch.no_grad()
    def observe(cls, adapters: list["AdaLoRA"]) -> None:
        """Smooth |weight · gradient| and how much it varies."""
        for stacked in alike(adapters):
            options = stacked[0].options
            at = [
                (
                    parameter,
                    adapter.get_buffer(f"{MEAN}_{leaf}"),
                    adapter.get_buffer(f"{SPREAD}_{leaf}"),
                )
                for adapter in stacked
                for leaf, parameter in adapter.named_parameters()
                if parameter.grad is not None
            ]
            if not at:
                continue
            weights, means, spreads = map(list, zip(*at, strict=True))
            now = torch._foreach_mul(weights, [weight.grad for weight in weights])
            torch._foreach_abs_(now)
            torch._foreach_lerp_(means, now, 1 - options.beta1)
            torch._foreach_sub_(now, means)
            torch._foreach_abs_(now)
            torch._foreach_lerp_(spreads, now, 1 - options.beta2)

    @staticmethod
    def importance(adapters: list["AdaLoRA"]) -> Tensor:
        """Of each triplet [sites, r] of sites that are alike: that of its value in E, and the means
        of its row and its column."""
        A, E, B = (
            torch.stack([adapter.get_buffer(f"{MEAN}_{leaf}") for adapter in adapters])
            * torch.stack([adapter.get_buffer(f"{SPREAD}_{leaf}") for adapter in adapters])
            for leaf in ("lora_A", "lora_E", "lora_B")
        )
        return E[:, :, 0] + A.mean(dim=2) + B.mean(dim=1)

    # ---- files, merging, sums

    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of the triplets that are left, E and s in them."""
        left = self.lora_E[:, 0] != 0
        left = left if left.any() else torch.ones_like(left)
        return (self.lora_A * self.lora_E)[left], self.scale * self.lora_B[:, left]

    def fold(self, f: Folded) -> Folded:
        update = self.scale * self.lora_B @ (self.lora_A * self.lora_E)
        return replace(f, weight=f.weight + update)


def alike(adapters: list[AdaLoRA]) -> list[list[AdaLoRA]]:
    """The adapters in groups of the same shapes, device and options.

    A GPU computes each group in a few launches, instead of a dozen for each site.
    """
    groups: dict[tuple, list[AdaLoRA]] = {}
    for adapter in adapters:
        A, B = adapter.lora_A, adapter.lora_B
        key = (A.shape, B.shape, A.device, adapter.options)
        groups.setdefault(key, []).append(adapter)
    return list(groups.values())


def from_identity(A: Tensor) -> Tensor:
    """‖A Aᵀ - 1‖ of each A [sites, r, in] -> [sites]."""
    identity = torch.eye(A.shape[1], device=A.device)
    return torch.linalg.matrix_norm(A @ A.transpose(1, 2) - identity)


def keep_most_important(adapters: list[AdaLoRA], left: float) -> None:
    """Mark the triplets that stay, `left` of the way from init_r (1) to target_r (0)."""
    options = [adapter.options for adapter in adapters]
    budget = round(sum(o.target_r + (o.init_r - o.target_r) * left for o in options))
    device = adapters[0].lora_E.device
    by_site = {}
    for stacked in alike(adapters):
        rows = AdaLoRA.importance(stacked).to(device)
        by_site |= {id(adapter): row for adapter, row in zip(stacked, rows, strict=True)}
    importance = torch.cat([by_site[id(adapter)] for adapter in adapters])
    kept = torch.zeros_like(importance, dtype=torch.bool)
    kept[importance.argsort(descending=True, stable=True)[:budget]] = True
    masks = kept.split([o.init_r for o in options])
    for adapter, mask in zip(adapters, masks, strict=True):
        adapter.kept = mask[:, None].to(adapter.lora_E.device)
