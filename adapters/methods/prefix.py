"""Prefix tuning (Li & Liang 2021): trained keys and values in front of every layer's own.

    keys     [P_k; k] ─┐
    values   [P_v; v] ─┴─ attention          every query also looks at the `length` trained pairs

P_k and P_v are [length, K * D] in every layer. The keys are not rotated, and real tokens are
counted from position `length` on (the paper: section 2, prompt-based learning). With projection = m
one MLP makes them from a smaller table, E [length, m] -> tanh -> m -> P (Li & Liang, section 4.3),
which trains better. `scale` multiplies the trained numbers: prefixes want larger steps than other
adapters at the same learning rate. A gate (UniPELT, Mao et al. 2022) multiplies both by a trained
sigmoid of each layer.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from adapters.base import Adapter, Size
from adapters.methods.prompt import KEY
from adapters.tensors import Tensors
from files.errors import UserError
from files.typed import Range
from model.language import LanguageModel
from model.sites import Site


class Prefix(Adapter):
    """[P_k; k] and [P_v; v]."""

    works_on = ("keys and values",)
    starts_at_base = False
    adds = False

    @dataclass(frozen=True)
    class Options:
        length: Size = 30
        projection: Annotated[int, Range(0, 2**31)] = 0  # the MLP's inner width; 0: no MLP
        scale: float = 1.0
        init: Annotated[float, Range(0)] = 0.02  # standard deviation of the start
        gate: bool = False

        def check(self) -> None:
            if self.scale == 0:
                raise UserError("scale must not be zero")

    @classmethod
    def build(cls, options: list, sites: list[Site], model: LanguageModel) -> list["Prefix"]:
        first = options[0]
        if any(o != first for o in options):
            raise UserError(
                "the layers of a prefix cannot have different options: real tokens are counted "
                "from the end of it"
            )
        table = None
        if first.projection:
            table = nn.Module()  # one for all layers
            table.weight = nn.Parameter(torch.randn(first.length, first.projection))
        return [cls(first, site, table) for site in sites]

    def __init__(self, options: Options, site: Site, table: nn.Module | None):
        super().__init__()
        self.options, self.virtual, self.heads = options, options.length, site.kv_heads
        size, width = options.init / abs(options.scale), 2 * site.out_features  # keys, values
        if table is None:
            self.prefix = nn.Parameter(size * torch.randn(options.length, width))
        else:
            self.table = table
            self.project = nn.Parameter(size * torch.randn(width, options.projection))
        self.prefix_gate = nn.Parameter(torch.zeros(1)) if options.gate else None

    def pairs(self) -> Tensor:
        """Keys, then values [length, 2 * K * D], float32."""
        if self.options.projection == 0:
            prefix = self.prefix
        else:
            prefix = torch.tanh(self.table.weight.to(self.project.device)) @ self.project.T
        prefix = self.options.scale * prefix
        return prefix if self.prefix_gate is None else torch.sigmoid(self.prefix_gate) * prefix

    def kv(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, K, S, D] of a layer -> those to attend to, `virtual` more of them."""
        pairs = self.pairs().to(k.dtype).view(self.virtual, 2, self.heads, -1)
        pairs = pairs.permute(1, 2, 0, 3)[:, None]  # [2, 1, K, length, D]
        keys, values = pairs.expand(-1, len(k), -1, -1, -1)
        return torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2)

    # ---- files, merging, sums

    @classmethod
    def to_file(cls, adapters: dict[str, Adapter]) -> dict[str, Tensor]:
        """PEFT's one table [length, 2 * layers * K * D]; if an MLP or a gate makes it, they too."""
        parts = [adapter.pairs() for adapter in adapters.values()]
        tensors = {KEY: torch.cat([part.to(parts[0].device) for part in parts], dim=1)}
        for path, adapter in adapters.items():
            if adapter.options.projection:
                tensors["encoder.table"] = adapter.table.weight
                tensors[f"{path}.project"] = adapter.project
            if adapter.options.gate:
                tensors[f"{path}.prefix_gate"] = adapter.prefix_gate
                if not adapter.options.projection:
                    tensors[f"{path}.prefix"] = adapter.prefix
        return tensors

    @classmethod
    @torch.no_grad()
    def from_file(cls, adapters: dict[str, Adapter], tensors: Tensors) -> None:
        table = tensors.pop(KEY)
        sources = cls.to_file(adapters)
        shape = sources.pop(KEY).shape
        if table.shape != shape:
            raise UserError(
                f"{tensors.where}: tensor {KEY!r} is {list(table.shape)}, this model's prefix "
                f"would be {list(shape)}"
            )
        for key, into in sources.items():
            tensors.take(key, into)
        if sources:
            tensors.check_derived(KEY, table, cls.to_file(adapters)[KEY])
            return
        parts = table.float().chunk(len(adapters), dim=1)
        for adapter, part in zip(adapters.values(), parts, strict=True):
            adapter.prefix.copy_(part / adapter.options.scale)
