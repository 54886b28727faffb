"""The first pass over prompts: padded on the right, what they have in common read once.

Letters used for shapes: B rows, T tokens of the longest, E size of the embedding.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapters.rows import Rows, seated
from data.batches import shared_start
from eval.requests import Row
from eval.room import Fronts
from model.cache import Cache
from model.language import LanguageModel

LEAST = 16  # tokens in common: fewer are read again
WORTH = 64  # tokens: a pass over one row more is worth it if it saves so many
TOKENS = {"cpu": 1024}  # of one pass, by device: no more is needed to use all of it
MORE_TOKENS = 8192  # elsewhere


def admit(waiting: deque[Row], free: list[int], device: str, fronts: Fronts) -> list[Row]:
    """Take from `waiting` the rows that are read in the next pass, each with slots of `free`.

    All have as many virtual tokens; rows that have others wait for a pass of their own.
    """
    rows: list[Row] = []
    for row in list(waiting):
        width = row.request.width
        longest = max(len(other.request.prompt) for other in [*rows, row])
        if width > len(free) or rows_of_pass(device, len(rows) + 1, longest) <= len(rows):
            break
        if not rows or fronts[row.request.entry] == fronts[rows[0].request.entry]:
            row.slots, free = free[:width], free[width:]
            rows.append(row)
            waiting.remove(row)
    return rows


@dataclass(frozen=True)
class Beginning:
    """Tokens whose keys and values are at the start of a row of a cache."""

    ids: Sequence[int]
    cache: Cache
    row: int


@dataclass(frozen=True)
class Read:
    """Rows that a model has read."""

    hidden: Tensor  # last hidden states [B, T, E] of what follows the common beginning
    first: int  # where `hidden` begins: the tokens of the common beginning
    cache: Cache
    lengths: list[int]  # tokens of each row in the cache, prompt tuning's included
    beginning: Beginning | None  # the common beginning

    def last(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """The hidden state of each row's last token [B, E]."""
        columns = torch.tensor([len(row) - self.first - 1 for row in rows])
        at = torch.arange(len(rows), device=self.hidden.device)
        return self.hidden[at, columns.to(self.hidden.device)]


def rows_of_pass(device: str, rows: int, length: int) -> int:
    """How many of so many rows of at most `length` tokens are read at once on a kind of device."""
    return max(1, min(rows, TOKENS.get(device, MORE_TOKENS) // length))


def read(
    model: LanguageModel,
    rows: Sequence[list[int]],
    mixtures: list[Rows],
    entries: Sequence[int],
    beginning: Beginning | None = None,
    prompts: Sequence[int] | None = None,
) -> Read:
    """Read rows of token ids, which may share a beginning that was read before.

    Tokens in common are read once, unless rows have adapters of their own or rotary angles depend
    on the length of a row. entries: those of `mixtures` for each row, which have as many virtual
    tokens each. prompts: how many tokens of each row are its prompt (None: all); all but the last
    of these may be read in advance, without their hidden states.
    """
    known, prompts = None, prompts or list(map(len, rows))
    with seated(mixtures, entries):
        if len(set(entries)) == 1 and not model.depends_on_length:
            known = begin(model, rows, mixtures, entries, beginning, prompts)
        first = len(known.ids) if known else 0
        rest = [row[first:] for row in rows]
        T = max(map(len, rest))
        cache = model.new_cache(len(rows), first + T)
        if known:
            for row in range(len(rows)):
                cache.copy_row(row, known.cache, known.row, model.prompt_length + first)
            cache.filled = model.prompt_length + first
        ids = torch.tensor([row + [0] * (T - len(row)) for row in rest], device=model.device)
        mask = None  # padding on the right needs none: no token looks at what comes after it
        if model.depends_on_length:
            mask = torch.tensor([[1] * len(row) + [0] * (T - len(row)) for row in rest])
            mask = None if mask.all() else mask.to(model.device)
        counts = torch.tensor(prompts, device=model.device)
        hidden = model.hidden(ids, mask, cache=cache, prompts=counts)
        lengths = [model.prompt_length + len(row) for row in rows]
    return Read(hidden, first, cache, lengths, known)


def begin(
    model: LanguageModel,
    rows: Sequence[list[int]],
    mixtures: list[Rows],
    entries: Sequence[int],
    beginning: Beginning | None,
    prompts: Sequence[int],
) -> Beginning | None:
    """The beginning that these rows have in common, read already or now; None: too short."""
    shortest = min(prompts)
    common = shared_start(min(rows), max(rows))  # of all rows these two differ first
    shared = max(0, min(common, shortest - max(1, model.prompt_ends)))
    there = min(shared_start(beginning.ids, rows[0]), shared) if beginning else 0
    there = there if there >= LEAST else 0
    if (len(rows) - 1) * (shared - there) >= WORTH:
        known = Beginning(beginning.ids[:there], beginning.cache, beginning.row) if there else None
        one = model.new_cache(1, shared)
        if known:
            one.copy_row(0, known.cache, known.row, model.prompt_length + there)
            one.filled = model.prompt_length + there
        with seated(mixtures, entries[:1]):
            ids = torch.tensor([rows[0][there:shared]], device=model.device)
            model.hidden(ids, cache=one, prompts=torch.tensor([shortest], device=model.device))
        return Beginning(rows[0][:shared], one, 0)
    return Beginning(rows[0][:there], beginning.cache, beginning.row) if there else None
