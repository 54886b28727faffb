"""SHiRA (Bhardwaj et al. 2024, section 3): a few entries of the weight are trained.

    x ─┬── W ──── + ── y      y = (W + S) x      S is zero but for r · (in + out) entries
       └── S ─────┘

As many as a LoRA of rank r has, at random places of a seed, or where |W| is largest. They start
at 0, the base. S [out, in] itself is made where that costs less than its entries one by one.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapters.base import Adapter, Folded, Size
from adapters.tensors import Tensors
from files.errors import UserError
from files.typed import Range
from model.fsdp import whole
from model.sites import Site


class SHiRA(Adapter):
    """f(x) + S x; foldable into the weight."""

    works_on = ("Linear",)
    keys = {"shira_weight": "shira_weight", "shira_indices": "shira_indices"}
    peft_type, peft = "SHIRA", {"r": "r", "seed": "random_seed"}

    @dataclass(frozen=True)
    class Options:
        r: Size | list[Size] = 32  # entries / (in + out); a list: one for each layer
        mask: Literal["random", "magnitude"] = "random"  # "magnitude": the largest of |W|
        seed: Annotated[int, Range(0)] = 0  # of random places

    def __init__(self, options: Options, site: Site):
        super().__init__()
        self.options, self.shape = options, (site.out_features, site.in_features)
        count, size = options.r * sum(self.shape), site.out_features * site.in_features
        if count > size:
            raise UserError(
                f"r = {options.r} asks for {count:,} entries of a weight that has {size:,}"
            )
        if site.weight.is_meta:
            places = torch.empty(count, dtype=torch.int64, device="meta")
        elif options.mask == "random":
            places = random_places(count, size, options.seed)
        else:
            places = whole(site.weight).detach().abs().flatten().topk(count).indices.sort().values
        rows, columns = places // site.in_features, places % site.in_features
        self.register_buffer("shira_indices", torch.stack((rows, columns)).int())
        self.shira_weight = nn.Parameter(torch.zeros(count))

    def dense(self, values: Tensor) -> Tensor:
        """S [out, in] with these values."""
        return values.new_zeros(self.shape).index_put(tuple(self.shira_indices.long()), values)

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        values = self.cast(self.shira_weight, x)
        if x.numel() // x.shape[-1] * len(values) > self.shape[0] * self.shape[1]:
            return y + F.linear(x, self.dense(values))
        rows, columns = self.shira_indices
        return y.index_add(-1, rows, x[..., columns] * values)

    # ---- files, merging, sums

    def fold(self, f: Folded) -> Folded:
        return replace(f, weight=f.weight + self.dense(self.shira_weight))

    @classmethod
    def from_file(cls, adapters: dict[str, Adapter], tensors: Tensors) -> None:
        """The places are those of the file. Raises UserError for one outside of the weight."""
        super().from_file(adapters, tensors)
        for path, adapter in adapters.items():
            places = adapter.shira_indices
            within = (places >= 0) & (places < places.new_tensor(adapter.shape)[:, None])
            if not within.all():
                raise UserError(f"{tensors.where}: shira_indices of {path} are not in its weight")


@lru_cache(maxsize=16)
def random_places(count: int, size: int, seed: int) -> Tensor:
    """Different numbers below `size`, sorted [count]; those of PEFT for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(size, generator=generator)[:count].sort().values
