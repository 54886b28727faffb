"""Sampling of tokens: temperature, top-k and nucleus (Holtzman et al. 2020)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from files.errors import UserError

COLDEST = 1e-6  # lowest temperature: logits divided by less leave the range of float32


@dataclass(frozen=True)
class Sampling:
    """How to sample a token: temperature, then the `top_k` most likely (0: all), then the smallest
    set with probability `top_p` (nucleus sampling, Holtzman et al. 2020)."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def check(self) -> None:
        """Raise UserError for a value out of its range."""
        if not (type(self.temperature) in (int, float) and COLDEST <= self.temperature < math.inf):
            raise UserError(
                f"temperature should be a number from {COLDEST:g}, not {self.temperature!r:.50}; "
                "without sampling, decoding is greedy"
            )
        if not (type(self.top_k) is int and self.top_k >= 0):
            raise UserError(
                f"top_k should be a whole number, 0 for all tokens, not {self.top_k!r:.50}"
            )
        if not (type(self.top_p) in (int, float) and 0 < self.top_p <= 1):
            raise UserError(f"top_p should be above 0 and at most 1, not {self.top_p!r:.50}")

    def filter(self, logits: Tensor) -> Tensor:
        """Logits [B, V] -> logits of the distribution to sample from: -inf for excluded tokens."""
        logits = logits / self.temperature
        if self.top_k:
            least = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < least, -math.inf)
        if self.top_p < 1:
            ordered, order = logits.sort(dim=-1)  # the least likely first
            tail = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - self.top_p
            tail[:, -1] = False  # the most likely stays whatever rounding says
            logits = logits.masked_fill(tail.scatter(-1, order, tail), -math.inf)
        return logits


def check(rows: int, beams: int, sampling: Sampling | None, seeds: Sequence[int] | None) -> None:
    """Raise UserError where beams, sampling and seeds do not go together."""
    if type(beams) is not int or beams < 1:
        raise UserError(f"beams should be 1 or more, not {beams!r:.50}")
    if sampling is None:
        if seeds is not None:
            raise UserError("seeds are for sampling; give sampling=Sampling(...) too")
        return
    if beams > 1:
        raise UserError(f"beams = {beams}: sampling needs beams=1")
    sampling.check()
    if seeds is None or len(seeds) != rows:
        raise UserError(
            f"sampling needs a seed for each of the {rows} rows, not "
            f"{'none' if seeds is None else len(seeds)}"
        )
    if not all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds):
        raise UserError(
            f"seeds should be whole numbers from 0 to 2^63 - 1, not {list(seeds)!r:.100}"
        )


def draw(logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Logits [B, V] -> one sampled token of each row [B], by one uniform number of its generator.

    The generators are the CPU's: those of a GPU give other numbers.
    """
    uniform = torch.cat([torch.rand(1, 1, generator=generator) for generator in generators])
    upto = logits.softmax(dim=-1).cumsum(dim=-1)  # the probability of a token and those before it
    return torch.searchsorted(upto, uniform.to(upto) * upto[:, -1:], right=True)[:, 0]


def choose(
    logits: Tensor,
    samplings: Sequence[Sampling | None],
    generators: Sequence[torch.Generator | None],
) -> Tensor:
    """Logits [B, V] -> the next token of each row [B]: drawn where it has a Sampling, else the
    likeliest."""
    tokens = logits.argmax(dim=-1)
    for sampling in dict.fromkeys(samplings):
        if sampling is None:
            continue
        rows = [row for row, other in enumerate(samplings) if other == sampling]
        drawn = draw(sampling.filter(logits[rows]), [generators[row] for row in rows])
        tokens[rows] = drawn
    return tokens


def scored(logits: Tensor, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
    """Logits [V] -> (the token's log-probability, the `top` likeliest [(id, log-probability)])."""
    log_probs = logits.float().log_softmax(dim=-1)
    values, ids = log_probs.topk(min(top, len(log_probs)))
    return float(log_probs[token]), list(zip(ids.tolist(), values.tolist(), strict=True))
