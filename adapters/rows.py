"""An adapter for each row of a batch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy

import torch
from torch import Tensor

from adapters.base import Folded
from adapters.compose import Composition
from files.errors import UserError
from model.language import LanguageModel
from model.sites import Site


class Seats:
    """Which entry of a Rows each row of a pass has; None: row i has entry i."""

    def __init__(self):
        self.entries: list[int] | None = None
        self.indices: dict = {}  # (name, device) -> the rows of that name, int64, and their number

    def take(self, entries: Sequence[int] | None) -> None:
        if entries != self.entries:
            self.entries, self.indices = None if entries is None else list(entries), {}


class Rows(Composition):
    """An adapter, or none, for each row of the batch.

    `seats.take(entries)` gives the rows of the next passes other entries than each its own.
    Adapters may put virtual tokens in front: rows that have as many read their prompts in one pass
    (eval/engine.py), and go on together with all others.
    """

    def __init__(self, *names: str | None):
        self.rows, self.seats = names, Seats()
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
        here = {name: site.adapters[name] for name in self.names if name in site.adapters}
        if not here:
            return None
        bound = copy(self)
        bound.members, bound.here = list(here.values()), here
        bound.lengths = [here[name].virtual if name in here else 0 for name in self.rows]
        return bound

    @property
    def virtual(self) -> int:
        """Virtual tokens in front of the rows of a first pass. Raises UserError if they differ."""
        entries = self.seats.entries
        lengths = set(self.lengths if entries is None else [self.lengths[e] for e in entries])
        if len(lengths) > 1:
            raise UserError(
                f"{self}: rows with {' and '.join(map(str, sorted(lengths)))} virtual tokens "
                "cannot be read in one pass; `generate` reads them one after another"
            )
        return lengths.pop()

    def check(self, count: int) -> None:
        """Raise UserError where there are not as many entries as rows."""
        if count != len(self.rows):
            raise UserError(f"{self} is for a batch of {len(self.rows)} rows, this one has {count}")

    def check_entry(self, entry: int | None) -> None:
        """Raise UserError for what is not the number of an entry."""
        if entry not in range(len(self.rows)):
            raise UserError(
                f"{self}: each row needs one of the entries 0 to {len(self.rows) - 1}, not {entry}"
            )

    def rows_with(self, name: str, device: torch.device) -> tuple[Tensor, int]:
        """(the rows of the pass that this adapter is for, how many they are)."""
        key = name, device
        if key not in self.seats.indices:
            entries = self.seats.entries or range(len(self.rows))
            rows = [row for row, entry in enumerate(entries) if self.rows[entry] == name]
            self.seats.indices[key] = torch.tensor(rows, dtype=torch.long).to(device), len(rows)
        return self.seats.indices[key]

    def split(self, change: Callable[..., Tensor], batch: Tensor, *others: Tensor) -> Tensor:
        """`batch` [B, ...] with the rows of each adapter as change(adapter, their rows of batch and
        of others) makes them."""
        if self.seats.entries is None:
            self.check(len(batch))
        whole, count, inputs = None, len(batch), (batch, *others)
        for name, adapter in self.here.items():
            rows, number = self.rows_with(name, batch.device)
            if number == count:
                return change(adapter, *inputs)
            if not number:
                continue
            part = change(adapter, *(tensor.index_select(0, rows) for tensor in inputs))
            if whole is None:  # if the shape changes, every row has an adapter
                same = part.shape[1:] == batch.shape[1:]
                whole = batch.clone() if same else batch.new_empty(count, *part.shape[1:])
            whole.index_copy_(0, rows, part)
        return batch if whole is None else whole

    def before(self, x: Tensor) -> Tensor:
        return self.split(lambda adapter, x: adapter.before(x), x)

    def after(self, y: Tensor, x: Tensor, f: Site) -> Tensor:
        return self.split(lambda adapter, y, x: adapter.after(y, x, f), y, x)

    def kv(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        keys = self.split(lambda adapter, k, v: adapter.kv(k, v)[0], k, v)
        return keys, self.split(lambda adapter, v, k: adapter.kv(k, v)[1], v, k)

    def embed(self, x: Tensor, first: bool) -> Tensor:
        return self.split(lambda adapter, x: adapter.embed(x, first), x)

    def unembed(self, h: Tensor) -> Tensor:
        return self.split(lambda adapter, h: adapter.unembed(h), h)

    def fold(self, f: Folded) -> Folded:
        raise UserError("each row of a batch has an adapter of its own")


def rows_in_use(model: LanguageModel) -> list[Rows]:
    """The entries by which rows of a batch have adapters of their own."""
    return [entry for entry in model.adapters_on[0] if isinstance(entry, Rows)]


@contextmanager
def seated(mixtures: list[Rows], entries: Sequence[int]) -> Iterator[None]:
    """Row i of the passes in this block has entry entries[i] of each of these Rows."""
    before = [rows.seats.entries for rows in mixtures]
    for rows in mixtures:
        rows.seats.take(entries)
    try:
        yield
    finally:
        for rows, entries in zip(mixtures, before, strict=True):
            rows.seats.take(entries)
