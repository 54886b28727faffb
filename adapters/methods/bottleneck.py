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
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import Adapter, Dropout, Size
from files.errors import UserError
from files.typed import Range
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
        reads: Literal["output", "input"] = "output"  # "output": series; "input": parallel
        writes: Literal["output", "input"] = "output"  # "input": the sum goes into f (a Linear)
        size: Size | list[Size] = 256  # bottleneck width; a list: one for each layer
        reduction: Annotated[float, Range(0)] = 0.0  # above 0: size = read width / reduction
        act: Literal[*ACTIVATIONS] = "tanh"
        scale: float | Literal["learned"] = 1.0  # s; "learned": a trained number, from 1
        dropout: Dropout = 0.0  # before the down-projection
        # "identity": D kaiming, U zeros, training starts at the base; "bert": both N(0, 0.02)
        init: Literal["identity", "bert"] = "identity"
        gate: bool = False

        def check(self) -> None:
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
