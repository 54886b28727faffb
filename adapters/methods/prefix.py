"""Prefix tuning (Li & Liang 2021): trained keys and values in front of every layer's own.

    keys     [P_k; k] ─┐
    values   [P_v; v] ─┴─ attention          every query also looks at the `length` trained pairs

P_k and P_v are [length, K * D] in every layer; the keys are not rotated, and real tokens are counted from position `length` on (the paper: section 2,
prompt-based learning). With projection = m they are made by one MLP from a smaller table, E [length, m] -> tanh -> m -> P (Li & Liang,
section 4.3), which trains better; afterwards the MLP is not needed. `scale` multiplies the trained numbers: prefixes want larger steps than
other adapters at the same learning rate. A gate (UniPELT, Mao et al. 2022) multiplies both by a trained sigmoid of each layer.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from adapters.base import Adapter, Size, Tensors
from files.errors import UserError
from files.typed import Range

KEY = "prompt_embeddings"


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
    def build(cls, options: list, sites: list[nn.Module], model: nn.Module) -> list["Prefix"]:
        if any(one != options[0] for one in options):
            raise UserError(
                "the layers of a prefix cannot have different options: real tokens are counted from behind it"
            )
        first = options[0]
        table = nn.Module()
        if first.projection:
            table.weight = nn.Parameter(torch.randn(first.length, first.projection))
        return [
            cls(one, site, table if first.projection else None)
            for one, site in zip(options, sites, strict=True)
        ]

    def __init__(self, options: Options, site: nn.Module, table: nn.Module | None):
        super().__init__()
        self.options, self.virtual, self.heads = options, options.length, site.kv_heads
        width = site.out_features
        if table is None:
            self.prefix = nn.Parameter(
                options.init / abs(options.scale) * torch.randn(options.length, 2 * width)
            )  # keys, values
        else:
            self.table = table  # one for all layers
            self.project = nn.Parameter(
                options.init / abs(options.scale) * torch.randn(2 * width, options.projection)
            )
        self.prefix_gate = nn.Parameter(torch.zeros(1)) if options.gate else None

    def pairs(self) -> Tensor:
        """Keys, then values [length, 2 * K * D], float32."""
        made = (
            self.prefix
            if self.options.projection == 0
            else torch.tanh(self.table.weight.to(self.project.device)) @ self.project.T
        )
        made = self.options.scale * made
        return made if self.prefix_gate is None else torch.sigmoid(self.prefix_gate) * made

    def kv(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        made = (
            self.pairs().to(k.dtype).view(self.virtual, 2, self.heads, -1).permute(1, 2, 0, 3)
        )  # [2, K, length, D]
        keys, values = made[:, None].expand(-1, len(k), -1, -1, -1)
        return torch.cat((keys, k), dim=2), torch.cat((values, v), dim=2)

    @classmethod
    def to_file(cls, adapters: dict[str, Adapter]) -> dict[str, Tensor]:
        """PEFT's one table [length, 2 * layers * K * D]; with a projection or a gate, what makes it as well."""
        parts = [one.pairs() for one in adapters.values()]
        found = {KEY: torch.cat([part.to(parts[0].device) for part in parts], dim=1)}
        first = next(iter(adapters.values()))
        if first.options.projection:
            found["encoder.table"] = first.table.weight
        for path, one in adapters.items():
            found |= {
                f"{path}.{leaf}": tensor
                for leaf, tensor in one.state_dict(keep_vars=True).items()
                if leaf in ("project", "prefix_gate")
            }
            if first.options.gate and not first.options.projection:
                found[f"{path}.prefix"] = one.prefix
        return found

    @classmethod
    @torch.no_grad()
    def from_file(cls, adapters: dict[str, Adapter], tensors: Tensors) -> None:
        table = tensors.pop(KEY)
        expected = cls.to_file(adapters)
        if table.shape != expected.pop(KEY).shape:
            raise UserError(
                f"{tensors.where}: tensor {KEY!r} is {list(table.shape)}, this model's prefix would be {list(cls.to_file(adapters)[KEY].shape)}"
            )
        for key, into in expected.items():
            tensors.take(key, into)
        if not expected:
            for one, part in zip(
                adapters.values(), table.float().chunk(len(adapters), dim=1), strict=True
            ):
                one.prefix.copy_(part / one.options.scale)
        elif not torch.allclose(
            cls.to_file(adapters)[KEY].cpu(), table.float().cpu(), rtol=1e-4, atol=1e-5
        ):
            raise UserError(f"{tensors.where}: {KEY!r} is not what the encoder beside it makes")
