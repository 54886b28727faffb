"""What the engine is asked for, and what it answers."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from eval.beams import Beams
from eval.sampling import Sampling, check
from files.errors import UserError

if TYPE_CHECKING:
    from eval.drafts import Text


@dataclass(frozen=True)
class Request:
    """A prompt to continue, and how; with `options` these continuations are compared instead."""

    ids: list[int]
    max_new_tokens: int = 0
    stop_ids: Collection[int] = ()  # the row ends at one of them, which is not part of it
    beams: int = 1  # 1: greedy, or drawn with `sampling`
    sampling: Sampling | None = None
    seed: int = 0  # of drawn tokens
    # whether these new tokens end the row; they are all part of it. Not with beams
    stop: Callable[[list[int]], bool] | None = None
    entry: int | None = None  # of Rows (adapters/rows.py), if rows have adapters of their own
    options: Sequence[list[int]] = ()  # ids of continuations whose likelihoods are wanted
    logprobs: int | None = None  # likely tokens to give beside each new one. Not with beams

    @cached_property
    def prompt(self) -> list[int]:
        """The ids of the first pass: with them a single option, whose last id is only predicted."""
        return self.ids + self.options[0][:-1] if len(self.options) == 1 else self.ids

    @property
    def width(self) -> int:
        """Slots that it takes."""
        return len(self.options) or self.beams

    @property
    def most(self) -> int:
        """The most tokens that follow its ids."""
        return max(map(len, self.options), default=self.max_new_tokens)

    def check(self, slots: int, length: int) -> None:
        """Raise UserError for what an engine with such slots cannot do."""
        check(1, self.beams, self.sampling, self.sampling and [self.seed])
        if self.beams > 1 and self.stop:
            raise UserError(f"beams = {self.beams}: `stop` needs beams=1")
        if not self.ids:
            raise UserError("cannot continue an empty prompt; give at least one token")
        if self.options and (self.max_new_tokens or self.beams > 1 or not all(self.options)):
            raise UserError("options have a token each at least, no max_new_tokens and no beams")
        if self.width > slots:
            what = "options" if self.options else "beams"
            raise UserError(f"{self.width} {what} need as many slots; there are {slots}")
        if self.most < 1 or len(self.ids) + self.most > length:
            what = "an option of" if self.options else "max_new_tokens"
            raise UserError(
                f"{what} {self.most} after a prompt of {len(self.ids)} tokens: 1 or more is "
                f"needed, and there is room for {length} in all"
            )


@dataclass(frozen=True)
class Event:
    """New tokens of a row; those of beams come when the row is over."""

    number: int  # of the request, as `submit` gave it
    tokens: list[int]
    # why it is over: "stop", "length", "positions" where the model has no more, or "compared"
    ended: str = ""
    # of each option: log p(option | ids) in nats, and whether greedy decoding would make it
    likelihoods: Sequence[tuple[float, bool]] = ()
    # of each token, with `logprobs`: its log-probability, the likeliest [(id, log-probability)]
    scores: Sequence[tuple[float, list[tuple[int, float]]]] = ()


@dataclass
class Row:
    """A request on its way."""

    number: int
    request: Request
    longest: int  # tokens that it may get
    beams: Beams | None
    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)  # one, or one for each beam or option
    text: "Text | None" = None  # that tokens are guessed from (eval/drafts.py)


def set_of(rows: Sequence[Row | None]) -> list[Row]:
    """Each row once, in order."""
    return list({id(row): row for row in rows if row}.values())
