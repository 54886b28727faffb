"""Bottleneck adapters: series (Houlsby et al. 2019; Pfeiffer et al. 2020) and parallel (He et al. 2022), one word apart.

    series     x ── f ──┬───────────────── + ── y          y = f(x) + s · U act(D f(x))       reads = "output"
                        └── D ─ act ─ U ───┘

    parallel   x ─┬── f ────────────────── + ── y          y = f(x) + s · U act(D x)          reads = "input"
                  └──── D ─ act ─ U ───────┘

    at the     x ──┬───────────────── + ── f ── y          y = f(x + s · U act(D x))          reads = "input", writes = "input"
    input          └── D ─ act ─ U ───┘

D is [size, read width], U is [written width, size]; no biases, as in the paper's code. The paper: eq. 4 (series) and eq. 5 (parallel).
s is a number (scaled parallel, He et al. 2022: 4) or learned. A gate (UniPELT, Mao et al. 2022) multiplies s by sigmoid(g · x) for each token.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import Adapter
from files.errors import UserError, unknown
from model.sites import Linear

ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "none": lambda x: x,
}


class Bottleneck(Adapter):
    """Down-projection, activation, up-projection, beside or behind a computation."""

    @dataclass(frozen=True)
    class Options:
        reads: str = "output"  # "output": series; "input": parallel
        writes: str = "output"  # "input": the sum goes into f instead (a Linear's input, as the paper's code does on gate and up)
        size: int | list = 256  # bottleneck width; a list: one for each layer
        reduction: float = 0.0  # instead of size: the read width divided by this
        act: str = "tanh"
        scale: float | str = 1.0  # s; "learned": a trained number, from 1
        dropout: float = 0.0  # in front of the down-projection
        init: str = "identity"  # "identity": D kaiming, U zeros, so training starts at the base; "bert": both N(0, 0.02)
        gate: bool = False

        def check(self) -> None:
            for key, known in (
                ("reads", ("output", "input")),
                ("writes", ("output", "input")),
                ("act", ACTIVATIONS),
                ("init", ("identity", "bert")),
            ):
                if getattr(self, key) not in known:
                    raise unknown(f"value for {key}", getattr(self, key), known)
            if self.size < 1:
                raise UserError(f"size = {self.size}: a bottleneck needs at least one unit")
            if self.reduction < 0:
                raise UserError(
                    f"reduction = {self.reduction} must be positive, or 0 for size to count"
                )
            if isinstance(self.scale, str) and self.scale != "learned":
                raise unknown("value for scale", self.scale, ["learned", "a number"])
            if not 0 <= self.dropout < 1:
                raise UserError(f"dropout = {self.dropout} is not between 0 and 1")
            if self.writes == "input" and self.reads == "output":
                raise UserError(
                    'writes = "input" needs reads = "input": the output is not there yet'
                )

    def __init__(self, options: Options, site: nn.Module):
        super().__init__()
        if options.writes == "input" and not isinstance(site, Linear):
            raise UserError(
                'writes = "input" works on Linears (q, k, v, o, gate, up, down), not on whole sub-layers'
            )
        self.options = options
        self.starts_at_base = options.init == "identity"
        self.changes_input = options.writes == "input"
        self.act = ACTIVATIONS[options.act]
        read = site.out_features if options.reads == "output" else site.in_features
        write = site.out_features if options.writes == "output" else site.in_features
        size = max(1, round(read / options.reduction)) if options.reduction else options.size
        self.adapter_down = nn.Parameter(torch.empty(size, read))
        self.adapter_up = nn.Parameter(torch.zeros(write, size))
        self.adapter_scaling = nn.Parameter(torch.ones(1)) if options.scale == "learned" else None
        self.adapter_gate = nn.Parameter(torch.zeros(1, read)) if options.gate else None
        if options.init == "bert":
            nn.init.normal_(self.adapter_down, std=0.02)
            nn.init.normal_(self.adapter_up, std=0.02)
        else:
            nn.init.kaiming_uniform_(self.adapter_down, a=math.sqrt(5))

    def delta(self, h: Tensor) -> Tensor:
        """s · U act(D h)."""
        scale = (
            self.options.scale if self.adapter_scaling is None else self.adapter_scaling.to(h.dtype)
        )
        if self.adapter_gate is not None:
            scale = scale * torch.sigmoid(self.linear(h, self.adapter_gate))
        h = F.dropout(h, self.options.dropout, self.training)
        return scale * self.linear(self.act(self.linear(h, self.adapter_down)), self.adapter_up)

    def before(self, x: Tensor) -> Tensor:
        return x + self.delta(x) if self.options.writes == "input" else x

    def after(self, y: Tensor, x: Tensor, f: nn.Module) -> Tensor:
        if self.options.writes == "input":
            return y
        return y + self.delta(y if self.options.reads == "output" else x)

    def side_by_side(
        self, weighted: list[tuple[Adapter, float]]
    ) -> tuple[str, object, dict[str, Tensor]]:
        """The units of all of them in one bottleneck, weights and scales in U."""
        first = self.options
        for one, _ in weighted:
            if one.options.gate or any(
                getattr(one.options, key) != getattr(first, key)
                for key in ("reads", "writes", "act")
            ):
                raise UserError(
                    "bottlenecks with a gate, or that differ in reads, writes or act, cannot be put side by side"
                )
        scales = [
            weight * (one.options.scale if one.adapter_scaling is None else one.adapter_scaling)
            for one, weight in weighted
        ]
        down = torch.cat([one.adapter_down for one, _ in weighted])
        up = torch.cat(
            [scale * one.adapter_up for scale, (one, _) in zip(scales, weighted, strict=True)],
            dim=1,
        )
        options = replace(
            first, size=len(down), reduction=0.0, scale=1.0, dropout=0.0, init="identity"
        )
        return "bottleneck", options, {"adapter_down": down, "adapter_up": up}

    def start(self, site: nn.Module) -> dict[str, float]:
        return {} if self.adapter_scaling is None else {"adapter_scaling": 1.0}

    def key(self, leaf: str) -> str:
        return (
            leaf if leaf == "adapter_scaling" else f"{leaf}.weight"
        )  # as the paper's code calls them
