"""Bottleneck adapters: series (Houlsby et al. 2019; Pfeiffer et al. 2020) and parallel (He et al. 2022), one word apart.

    series     x ── f ──┬───────────────── + ── y          y = f(x) + s · U act(D f(x))       reads = "output"
                        └── D ─ act ─ U ───┘

    parallel   x ─┬── f ────────────────── + ── y          y = f(x) + s · U act(D x)          reads = "input"
                  └──── D ─ act ─ U ───────┘

    at the     x ──┬───────────────── + ── f ── y          y = f(x + s · U act(D x))          reads = "input", writes = "input"
    input          └── D ─ act ─ U ───┘

D is [size, read width], U is [written width, size]; no biases, as in the paper's code. The paper: eq. 4 (series) and eq. 5 (parallel).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import Adapter
from model.errors import UserError, unknown
from model.parts import Linear

ACTIVATIONS = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu, "silu": F.silu, "none": lambda x: x}


class Bottleneck(Adapter):
    """Down-projection, activation, up-projection, beside or behind a computation."""

    @dataclass(frozen=True)
    class Options:
        reads: str = "output"  # "output": series; "input": parallel
        writes: str = "output"  # "input": the sum goes into f instead (a Linear's input, as the paper's code does on gate and up)
        size: int = 256  # bottleneck width
        act: str = "tanh"
        scale: float = 1.0
        dropout: float = 0.0  # in front of the down-projection
        init: str = "identity"  # "identity": D kaiming, U zeros, so training starts at the base; "bert": both N(0, 0.02)

        def check(self) -> None:
            for key, known in (("reads", ("output", "input")), ("writes", ("output", "input")), ("act", ACTIVATIONS), ("init", ("identity", "bert"))):
                if getattr(self, key) not in known:
                    raise unknown(f"value for {key}", getattr(self, key), known)
            if self.size < 1:
                raise UserError(f"size = {self.size}: a bottleneck needs at least one unit")
            if not 0 <= self.dropout < 1:
                raise UserError(f"dropout = {self.dropout} is not between 0 and 1")
            if self.writes == "input" and self.reads == "output":
                raise UserError('writes = "input" needs reads = "input": the output is not there yet')

    def __init__(self, options: Options, site: nn.Module):
        super().__init__()
        if options.writes == "input" and not isinstance(site, Linear):
            raise UserError('writes = "input" works on Linears (q, k, v, o, gate, up, down), not on whole sub-layers')
        self.options = options
        self.act = ACTIVATIONS[options.act]
        read = site.out_features if options.reads == "output" else site.in_features
        write = site.out_features if options.writes == "output" else site.in_features
        self.adapter_down = nn.Parameter(torch.empty(options.size, read))
        self.adapter_up = nn.Parameter(torch.zeros(write, options.size))
        if options.init == "bert":
            nn.init.normal_(self.adapter_down, std=0.02)
            nn.init.normal_(self.adapter_up, std=0.02)
        else:
            nn.init.kaiming_uniform_(self.adapter_down, a=math.sqrt(5))

    def delta(self, h: Tensor) -> Tensor:
        """s · U act(D h)."""
        h = F.dropout(h, self.options.dropout, self.training)
        return self.options.scale * self.linear(self.act(self.linear(h, self.adapter_down)), self.adapter_up)

    def before(self, x: Tensor) -> Tensor:
        return x + self.delta(x) if self.options.writes == "input" else x

    def after(self, y: Tensor, x: Tensor, f: nn.Module) -> Tensor:
        if self.options.writes == "input":
            return y
        return y + self.delta(y if self.options.reads == "output" else x)
