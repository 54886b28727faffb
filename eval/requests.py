"""What the engine is asked for, and what it answers."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import torch

from eval.beams import Beams
from eval.sampling import Sampling


@dataclass(frozen=True)
class Request:
    """A prompt to continue, and how."""

    ids: list[int]
    max_new_tokens: int
    stop_ids: Collection[int] = ()  # the row ends at one of them, which is not part of it
    beams: int = 1  # 1: greedy, or drawn with `sampling`
    sampling: Sampling | None = None
    seed: int = 0  # of drawn tokens
    # whether these new tokens end the row; they are all part of it. Not with beams
    stop: Callable[[list[int]], bool] | None = None
    entry: int | None = None  # of Rows (adapters/compose.py), if rows have adapters of their own
    logprobs: int | None = None  # likely tokens to give beside each new one. Not with beams


@dataclass(frozen=True)
class Event:
    """New tokens of a row; those of beams come when the row is over."""

    number: int  # of the request, as `submit` gave it
    tokens: list[int]
    ended: str = ""  # why: "stop", "length", or "positions" where the model has no more
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
    slots: list[int] = field(default_factory=list)  # one, or one for each beam
