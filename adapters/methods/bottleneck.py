"""Bottleneck adapters: series (Houlsby et al. 2019) and parallel (He et al. 2022), one word apart.

    series     x ── f ──┬───────────────── + ── y     y = f(x) + s · U act(D f(x))
                        └── D ─ act ─ U ───┘          reads = "output"

    parallel   x ─┬── f ────────────────── + ── y     y = f(x) + s · U act(D x)
                  └──── D ─ act ─ U ───────┘          reads = "input"

    at the     x ──┬───────────────── + ── f ── y     y = f(x + s · U act(D x))
    input          └── D ─ act ─ U ───┘               reads = "input", writes = "input"

D is [size, read width], U is [written width, size]; no biases, as in the paper's code. The paper:
eq. 4 (series) and eq. 5 (parallel). s is a number (scaled parallel, He et al. 2022: 4) or learned.
A gate (UniPELT, Mao et al. 2022) multiplies s by sigmoid(g · x) for each token.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import Dropout, Size, Sum, Summable, Weighted, training
from files.errors import UserError
from files.typed import Range
from model.kernels import dropout
from model.sites import Linear, Site

ACTIVATIONS = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}
ACTIVATIONS["none"] = lambda x: x


class Bottleneck(Summable):
    """Down-projection, activation, up-projection, beside or after a computation."""

    keys = {"adapter_scaling": "adapter_scaling"}  # as in the paper's code

    @dataclass(frozen=True)
    class Options:
        reads: Literal["output", "input"] = "output"  # "output": series; "input": parallel
        writes: Literal["output", "input"] = "output"  # "input": the sum goes into f (a Linear)
        size: Size | list[Size] = 256  # bottleneck width; a list: one for each layer
        reduction: Annotated[float, Range(0)] = 0.0  # above 0: size = read width / reduction
        act: Literal[*ACTIVATIONS] = "tanh"
        scale: float | Literal["learned"] = 1.0  # s; "learned": a trained number, from 1
        dropout: Dropout = training(0.0)  # before the down-projection
        # "identity": D kaiming, U zeros, training starts at the base; "bert": both N(0, 0.02)
        init: Literal["identity", "bert"] = training("identity")
        gate: bool = False

        def check(self) -> None:
            if self.writes == "input" and self.reads == "output":
                raise UserError(
                    'writes = "input" needs reads = "input": the output is not there yet'
                )

    def __init__(self, options: Options, site: Site):
        super().__init__()
        if options.writes == "input" and not isinstance(site, Linear):
            raise UserError(
                'writes = "input" works on Linears (q, k, v, o, gate, up, down), '
                "not on whole sub-layers"
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

    @property
    def scale(self) -> float | Tensor:
        """s."""
        return self.options.scale if self.adapter_scaling is None else self.adapter_scaling

    def delta(self, h: Tensor) -> Tensor:
        """s · U act(D h)."""
        scale = self.scale.to(h.dtype) if isinstance(self.scale, Tensor) else self.scale
        if self.adapter_gate is not None:
            scale = scale * torch.sigmoid(self.linear(h, self.adapter_gate))
        h = dropout(h, self.options.dropout, self.training)
        out = self.linear(self.act(self.linear(h, self.adapter_down)), self.adapter_up)
        return out if isinstance(scale, float) and scale == 1.0 else scale * out

    def before(self, x: Tensor) -> Tensor:
        return x + self.delta(x) if self.options.writes == "input" else x

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        if self.options.writes == "input":
            return y
        return y + self.delta(y if self.options.reads == "output" else x)

    # ---- files, merging, sums

    def start(self, site: Site) -> dict[str, float]:
        return {} if self.adapter_scaling is None else {"adapter_scaling": 1.0}

    def side_by_side(self, weighted: Weighted) -> Sum:
        """The units of all of them in one bottleneck, weights and scales in U."""
        ours = self.options
        shared = {(o.reads, o.writes, o.act) for o in (adapter.options for adapter, _ in weighted)}
        if len(shared) > 1 or any(adapter.options.gate for adapter, _ in weighted):
            raise UserError(
                "bottlenecks with a gate, or that differ in reads, writes or act, cannot be put "
                "side by side"
            )
        down = torch.cat([adapter.adapter_down for adapter, _ in weighted])
        up = torch.cat([weight * a.scale * a.adapter_up for a, weight in weighted], dim=1)
        new = {"size": len(down), "reduction": 0.0, "scale": 1.0, "dropout": 0.0}
        options = replace(ours, **new, init="identity")
        return "bottleneck", options, {"adapter_down": down, "adapter_up": up}
