"""Batched decoding with a key/value cache: greedy and sampled here, beams in eval/beams.py."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adapters.compose import by_row
from eval.beams import beam_search
from files.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How to draw a token: temperature, then the top_k most likely (0: all), then the nucleus that holds top_p (Holtzman et al. 2020)."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def check(self) -> None:
        """Raise UserError for a value out of its range."""
        if not (type(self.temperature) in (int, float) and 0 < self.temperature < math.inf):
            raise UserError(
                f"temperature should be a number above 0, not {self.temperature!r:.50}; without sampling, decoding is greedy"
            )
        if not (type(self.top_k) is int and self.top_k >= 0):
            raise UserError(
                f"top_k should be a whole number, 0 for all tokens, not {self.top_k!r:.50}"
            )
        if not (type(self.top_p) in (int, float) and 0 < self.top_p <= 1):
            raise UserError(f"top_p should be above 0 and at most 1, not {self.top_p!r:.50}")

    def filter(self, logits: Tensor) -> Tensor:
        """Logits [B, V] -> those of the distribution to draw from: -inf for what is never drawn."""
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


@torch.inference_mode()
def generate(
    model: nn.Module,
    ids: Tensor,
    mask: Tensor | None = None,
    max_new_tokens: int = 12,
    beams: int = 1,
    stop_ids: Sequence[int] = (),
    vocab_size: int | None = None,
    stream: Callable[[list[int]], None] | None = None,
    *,
    sampling: Sampling | None = None,
    seeds: Sequence[int] | None = None,
    stop: Callable[[list[int]], bool] | None = None,
) -> list[list[int]]:
    """Continue ids int64 [B, T] (left-padded, mask 1 = real token) -> new tokens of each row, without the stop token.

    Greedy, unless `sampling` says how to draw (row i from a generator of its own, seeded seeds[i]) or beams > 1 (eval/beams.py).
    Only ids below vocab_size are chosen (GPT-J and OPT have more rows than tokens; None: all).
    A row ends at a stop id, when stop(its new tokens) is True (they are kept), or after max_new_tokens; finished rows leave the batch.
    `stream` sees each step's new tokens. Raises UserError for rows without a real token and for settings that do not go together.
    """
    B, T = ids.shape
    check(B, beams, sampling, seeds)
    if beams > 1 and (stream is not None or stop is not None):
        raise UserError(
            f"beams = {beams}: `stream` and `stop` need beams=1, as beams have no tokens to show before the end"
        )
    if T == 0 or (mask is not None and not mask.bool().any(dim=1).all()):
        raise UserError("cannot continue an empty prompt; give at least one token")
    if mask is None or mask.bool().all():
        mask = None
    else:
        if not mask[:, -1].bool().all():
            raise UserError("prompts must be padded on the left: the last token of a row is a pad")
        mask = torch.cat((mask, mask.new_ones(B, max_new_tokens)), dim=1)
    ends = torch.tensor(list(stop_ids), device=ids.device, dtype=torch.long)
    if beams > 1:
        return beam_search(model, ids, mask, max_new_tokens, beams, ends, vocab_size)
    cache = model.new_cache(B, T + max_new_tokens)
    outputs: list[list[int]] = [[] for _ in range(B)]
    generators = (
        None if sampling is None else [torch.Generator().manual_seed(seed) for seed in seeds]
    )
    rows = torch.arange(B, device=ids.device)  # which row of the request each row of the batch is
    done = torch.zeros(B, dtype=torch.bool, device=ids.device)
    for step in range(max_new_tokens):
        seen = None if mask is None else mask[:, : T + step]
        hidden = model.hidden(ids, seen, cache=cache)
        logits = model.logits(hidden[:, -1])[:, :vocab_size].to(ids.device)
        if sampling is None:
            token = logits.argmax(dim=-1)  # [rows]
        else:
            token = draw(sampling.filter(logits), [generators[row] for row in rows.tolist()])
        done |= torch.isin(token, ends)
        for row, new in zip(rows[~done].tolist(), token[~done].tolist(), strict=True):
            outputs[row].append(new)
        if stream is not None:
            stream(token[~done].tolist())
        if stop is not None:
            ended = [
                not over and stop(outputs[row])
                for row, over in zip(rows.tolist(), done.tolist(), strict=True)
            ]
            done |= torch.tensor(ended, device=ids.device)
        if done.all():
            break
        if mask is not None:
            mask[done, T + step :] = 0  # a finished row takes no further positions
        if done.sum() * 2 >= len(done) and not by_row(model):  # go on with the unfinished rows only
            mask = None if mask is None else mask[~done]
            cache.select(~done)
            rows, token, done = rows[~done], token[~done], done[~done]
        ids = token[:, None]
    return outputs


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
            f"sampling needs a seed for each of the {rows} rows, not {'none' if seeds is None else len(seeds)}"
        )
    if not all(type(seed) is int and 0 <= seed < 2**63 for seed in seeds):
        raise UserError(
            f"seeds should be whole numbers from 0 to 2^63 - 1, not {list(seeds)!r:.100}"
        )


def draw(logits: Tensor, generators: list[torch.Generator]) -> Tensor:
    """One token [B] of each row's distribution [B, V]; on the CPU, as generators of a GPU give other numbers."""
    chances = logits.softmax(dim=-1).cpu()
    return torch.cat(
        [
            torch.multinomial(row, 1, generator=generator)
            for row, generator in zip(chances, generators, strict=True)
        ]
    ).to(logits.device)
