"""Several adapters at once: stacked, averaged, one for each row of a batch.

    use(model, ["language", "math"])                            stacked, in this order
    use(model, [Average("math", "code", weights=[0.7, 0.3])])   the weighted mean of what they add
    use(model, [Rows("math", "code", None)])                    row 0 of the batch through math, row 1 through code, row 2 through the base

A composition stands in a site's tuple of active adapters and has an adapter's hooks; it owns no parameters. Fusion, which does, is a method
(adapters/methods/fusion.py); what task arithmetic makes of adapters is a new adapter (adapters/combine.py).
"""

import math
from collections.abc import Callable

from torch import Tensor, nn

from adapters.base import Adapter
from files.errors import UserError
from model.sites import Site


class Group(Adapter):
    """The parts of a mixture that meet at one site, applied in their order."""

    def __init__(self, parts: dict[str, Adapter]):
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.virtual = sum(part.virtual for part in parts.values())
        self.starts_at_base = all(part.starts_at_base for part in parts.values())
        self.adds = all(part.adds for part in parts.values())
        self.changes_input = any(part.changes_input for part in parts.values())

    def before(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = part.before(x)
        return x

    def after(self, y: Tensor, x: Tensor, f: nn.Module) -> Tensor:
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


class Composition:
    """Several loaded adapters, by name, in the place of one. `at(site)` is the same with those that sit at one site, or None."""

    names: tuple[str, ...]
    members: list[Adapter]
    virtual = 0
    adds = True

    def kv(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k, v

    def embed(self, x: Tensor, first: bool) -> Tensor:
        return x

    def unembed(self, h: Tensor) -> Tensor:
        return h


class Average(Composition):
    """The sum of weight x what each adapter adds; the weights are 1 / n unless given, and need not sum to 1."""

    def __init__(self, *names: str, weights: list[float] | None = None):
        self.names = names
        self.weights = [1 / len(names)] * len(names) if weights is None else list(weights)
        if (
            not all(isinstance(name, str) for name in names)
            or len(self.weights) != len(names)
            or len(set(names)) != len(names)
            or not names
        ):
            raise UserError(
                f"Average takes different names and as many weights, not {list(names)} and {self.weights}"
            )
        if not all(
            type(weight) in (int, float) and math.isfinite(weight) for weight in self.weights
        ):
            raise UserError(
                f"the weights of an Average should be finite numbers, not {self.weights}"
            )

    def __repr__(self) -> str:
        return f"Average({', '.join(map(repr, self.names))}, weights={self.weights})"

    def table(self) -> dict:
        return {"average": list(self.names), "weights": self.weights}

    def at(self, site: Site) -> "Average | None":
        here = [
            (site.adapters[name], weight)
            for name, weight in zip(self.names, self.weights, strict=True)
            if name in site.adapters
        ]
        if not here:
            return None
        for name, (member, _) in zip(
            [name for name in self.names if name in site.adapters], here, strict=True
        ):
            if not member.adds:
                raise UserError(
                    f"adapter {name!r} ({member.config.kind}) adds nothing to an output that could be averaged; "
                    'combine(model, weights, name, how="weights") averages the adapters themselves'
                )
        bound = Average(*self.names, weights=self.weights)
        bound.members, bound.shares = [member for member, _ in here], [weight for _, weight in here]
        return bound

    def before(self, x: Tensor) -> Tensor:
        return x + sum(
            share * (member.before(x) - x)
            for member, share in zip(self.members, self.shares, strict=True)
        )

    def after(self, y: Tensor, x: Tensor, f: nn.Module) -> Tensor:
        return y + sum(
            share * (member.after(y, x, f) - y)
            for member, share in zip(self.members, self.shares, strict=True)
        )


class Rows(Composition):
    """An adapter, or none, for each row of the batch. Adapters that put virtual tokens in front must be of one length for all rows."""

    def __init__(self, *names: str | None):
        self.rows = names
        if not all(name is None or isinstance(name, str) for name in names):
            raise UserError(f"Rows takes names and None, not {list(names)}")
        self.names = tuple(dict.fromkeys(name for name in names if name is not None))
        if not names:
            raise UserError("Rows takes a name, or None, for each row of the batch")

    def __repr__(self) -> str:
        return f"Rows({', '.join(map(repr, self.rows))})"

    def table(self) -> dict:
        return {"rows": list(self.rows)}

    def at(self, site: Site) -> "Rows | None":
        chosen = [site.adapters._modules.get(name) for name in self.rows]
        if not any(one is not None for one in chosen):
            return None
        lengths = {0 if one is None else one.virtual for one in chosen}
        if len(lengths) > 1:
            raise UserError(
                f"{self}: rows with {' and '.join(map(str, sorted(lengths)))} virtual tokens cannot be in one batch"
            )
        bound = Rows(*self.rows)
        bound.virtual = lengths.pop()
        bound.groups = []  # (adapter, its rows)
        for name in self.names:
            if name in site.adapters:
                bound.groups.append(
                    (
                        site.adapters[name],
                        [row for row, other in enumerate(self.rows) if other == name],
                    )
                )
        bound.members = [adapter for adapter, _ in bound.groups]
        return bound

    def split(self, what: Tensor, change: Callable[[Adapter, list[int]], Tensor]) -> Tensor:
        """`what` [B, ...] with the rows of each adapter as `change` makes them."""
        if len(what) != len(self.rows):
            raise UserError(
                f"{self} is for a batch of {len(self.rows)} rows, this one has {len(what)}"
            )
        parts = [(rows, change(adapter, rows)) for adapter, rows in self.groups]
        shape = parts[0][1].shape[1:]
        whole = (
            what.clone() if what.shape[1:] == shape else what.new_empty(len(what), *shape)
        )  # of another shape, every row has an adapter
        for rows, part in parts:
            whole[rows] = part
        return whole

    def before(self, x: Tensor) -> Tensor:
        return self.split(x, lambda adapter, rows: adapter.before(x[rows]))

    def after(self, y: Tensor, x: Tensor, f: nn.Module) -> Tensor:
        return self.split(y, lambda adapter, rows: adapter.after(y[rows], x[rows], f))

    def kv(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(
            self.split(one, lambda adapter, rows, i=i: adapter.kv(k[rows], v[rows])[i])
            for i, one in enumerate((k, v))
        )

    def embed(self, x: Tensor, first: bool) -> Tensor:
        return self.split(x, lambda adapter, rows: adapter.embed(x[rows], first))

    def unembed(self, h: Tensor) -> Tensor:
        return self.split(h, lambda adapter, rows: adapter.unembed(h[rows]))


def from_table(entry) -> "str | Composition":
    """A name, or what `table` of a composition gave, back again. Raises UserError."""
    if isinstance(entry, str):
        return entry
    known = isinstance(entry, dict) and (
        entry.keys() == {"average", "weights"} or entry.keys() == {"rows"}
    )
    if not known or not all(isinstance(value, list) for value in entry.values()):
        raise UserError(f"{entry!r:.100} is neither an adapter's name nor a composition")
    return (
        Rows(*entry["rows"])
        if "rows" in entry
        else Average(*entry["average"], weights=entry["weights"])
    )


def by_row(model: nn.Module) -> bool:
    """Whether rows of a batch have adapters of their own, so that none may leave it."""
    return any(
        isinstance(entry, Rows)
        for module in model.modules()
        if isinstance(module, Site)
        for entry in module.active
    )
