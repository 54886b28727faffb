"""Several adapters at once: stacked, averaged, one for each row of a batch.

    use(model, ["language", "math"])                            stacked, in this order
    use(model, [Average("math", "code", weights=[0.7, 0.3])])   the weighted mean of what they add
    use(model, [Rows("math", "code", None)])                    row 0 through math, row 1 through
                                                                code, row 2 through the base

`Rows` is in adapters/rows.py. A composition stands in a site's tuple of active adapters and has an
adapter's hooks; it owns no parameters. Fusion, which does, is a method (methods/fusion.py); what
task arithmetic makes of adapters is a new adapter (adapters/combine.py).
"""

import math
from collections.abc import Callable
from copy import copy
from dataclasses import replace

from torch import Tensor, nn

from adapters.base import Adapter, Folded
from files.errors import UserError
from model.sites import Site


class Group(Adapter):
    """The parts of a mixture that meet at one site, applied in their order."""

    def __init__(self, parts: dict[str, Adapter]):
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.virtual = sum(part.virtual for part in parts.values())
        self.ends = max(part.ends for part in parts.values())
        self.starts_at_base = all(part.starts_at_base for part in parts.values())
        self.adds = all(part.adds for part in parts.values())
        self.changes_input = any(part.changes_input for part in parts.values())

    def before(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = part.before(x)
        return x

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        for part in self.parts.values():
            y = part.after(y, x, f)
        return y

    def kv(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        for part in self.parts.values():
            k, v = part.kv(k, v)
        return k, v

    def embed(self, x: Tensor, first: bool) -> Tensor:
        for part in self.parts.values():
            x = part.embed(x, first)
        return x

    def unembed(self, h: Tensor) -> Tensor:
        for part in reversed(self.parts.values()):
            h = part.unembed(h)
        return h

    def fold(self, f: Folded) -> Folded:
        for part in self.parts.values():
            f = part.fold(f)
        return f


class Composition:
    """Several loaded adapters, by name, in the place of one.

    `at(site)` is the same with its `members` at that site, or None if there are none.
    """

    names: tuple[str, ...]
    members: list[Adapter]
    virtual = 0

    @property
    def ends(self) -> int:
        return max(member.ends for member in self.members)

    def embed(self, x: Tensor, first: bool) -> Tensor:
        return x

    def unembed(self, h: Tensor) -> Tensor:
        return h


class Average(Composition):
    """The sum of weight x what each adapter adds; weights are 1 / n unless given."""

    def __init__(self, *names: str, weights: list[float] | None = None):
        weights = [1 / len(names)] * len(names) if weights is None else list(weights)
        self.names, self.weights = names, weights
        different = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
        if not names or not different or len(weights) != len(names):
            given = f"{list(names)} and {weights}"
            raise UserError(f"Average takes different names and as many weights, not {given}")
        if not all(type(w) in (int, float) and math.isfinite(w) for w in weights):
            raise UserError(f"the weights of an Average should be finite numbers, not {weights}")

    def __repr__(self) -> str:
        return f"Average({', '.join(map(repr, self.names))}, weights={self.weights})"

    def table(self) -> dict:
        return {"average": list(self.names), "weights": self.weights}

    def at(self, site: Site) -> "Average | None":
        bound = copy(self)
        bound.members, bound.shares = [], []
        for name, weight in zip(self.names, self.weights, strict=True):
            if name not in site.adapters:
                continue
            member = site.adapters[name]
            if not member.adds:
                raise UserError(
                    f"adapter {name!r} ({member.config.kind}) adds nothing to an output that could "
                    'be averaged; combine(model, weights, name, how="weights") averages the '
                    "adapters themselves"
                )
            bound.members.append(member)
            bound.shares.append(weight)
        return bound if bound.members else None

    def sum(self, start: Tensor, change: Callable[[Adapter], Tensor]) -> Tensor:
        """start + the sum of share x (what `change` makes of it - start)."""
        pairs = zip(self.members, self.shares, strict=True)
        return start + sum(share * (change(member) - start) for member, share in pairs)

    def before(self, x: Tensor) -> Tensor:
        return self.sum(x, lambda member: member.before(x))

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        return self.sum(y, lambda member: member.after(y, x, f))

    def fold(self, f: Folded) -> Folded:
        weight, bias, changes = f.weight, f.bias, []
        for member, share in zip(self.members, self.shares, strict=True):
            folded = member.fold(replace(f, inputs=()))
            if folded.weight is not f.weight:
                weight = weight + share * (folded.weight - f.weight)
            if folded.bias is not f.bias:
                change = share * (folded.bias if f.bias is None else folded.bias - f.bias)
                bias = change if bias is None else bias + change
            if folded.inputs:
                changes.append((share, folded.through))

        def mean(weight: Tensor) -> Tensor:
            return weight + sum(share * (change(weight) - weight) for share, change in changes)

        inputs = (*f.inputs, mean) if changes else f.inputs
        return replace(f, weight=weight, bias=bias, inputs=inputs)


def members_of(entry: "Adapter | Composition") -> list[Adapter]:
    """The adapters of an entry of a site's active tuple."""
    return entry.members if isinstance(entry, Composition) else [entry]
