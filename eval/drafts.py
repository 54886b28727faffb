"""Tokens guessed in advance, which one pass checks all at once; no token of an answer changes.

    ... 5 trout . She has | 5 trout     a row's last two tokens stood in it before: what followed
                                        them is guessed, and read in the same pass
    the model's own         5 pens      the first guess holds, the second does not: two new tokens

A pass over a few tokens of a row takes hardly longer than over one, as it reads the same weights.
The model's own choice (the likeliest token, or the drawn one) after each guess that holds is the
next token, as it would be without guesses. Saxena 2023 (prompt lookup decoding); Leviathan et al.
2023.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adapters.rows import seated
from eval.requests import Event, Row
from model.language import LanguageModel, call_block
from model.packing import Packing
from model.slots import Slots

if TYPE_CHECKING:
    from eval.engine import Engine

MOST = 8  # guessed tokens of a row in a pass
TOKENS = {"cpu": 24}  # of a pass with guesses, by kind of device; elsewhere there are none


class Text:
    """The tokens of a row so far, and where each pair of them stood last, but for the last pair."""

    def __init__(self, tokens: Sequence[int]):
        self.tokens: list[int] = []
        self.after: dict[tuple[int, int], int] = {}  # a pair -> the place after it
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            if len(self.tokens) > 1:
                self.after[self.tokens[-2], self.tokens[-1]] = len(self.tokens)
            self.tokens.append(token)

    def guess(self, most: int) -> list[int]:
        """What followed the last two tokens when they stood here before, at most so many."""
        start = self.after.get(tuple(self.tokens[-2:]))
        return [] if start is None else self.tokens[start : start + most]


def can_guess(model: LanguageModel) -> bool:
    """Whether passes over several tokens of a row give what passes over one do, and pay."""
    fixed = not model.depends_on_length and model.call is call_block
    return fixed and model.device.type in TOKENS


def guesses(model: LanguageModel, rows: Sequence[Row], cache: Slots) -> list[list[int]]:
    """Of each row of the next pass, the tokens that are guessed to follow its last one."""
    none: list[list[int]] = [[] for _ in rows]
    if not can_guess(model) or any(row.beams for row in rows):
        return none
    room = cache.length - max(cache.lengths[: len(rows)]) - 1  # a pass is as wide in all rows
    most = min(MOST, TOKENS[model.device.type] // len(rows) - 1, room)
    if most < 1:
        return none
    return [guess(row, most) for row in rows]


def guess(row: Row, most: int) -> list[int]:
    """The tokens that are guessed to follow a row's last one; the row's last is never guessed."""
    row.text = row.text or Text(row.request.ids)
    row.text.extend(row.tokens[len(row.text.tokens) - len(row.request.ids) :])
    return row.text.guess(min(most, row.longest - len(row.tokens) - 1))


def verify(engine: "Engine", rows: Sequence[Row], guessed: Sequence[list[int]]) -> list[Event]:
    """Read the last token of each live row and its guesses -> the events of the tokens that the
    model chooses itself: after the last token, and after each guess that was its choice.

    What a slot holds of a wrong guess lies after its row's length, where nothing looks.
    """
    logits, first = pass_over(engine, rows, guessed)
    events, new, going_on = [], [0] * len(rows), list(range(len(rows)))
    while going_on:
        at = [[first[i] + new[i]] for i in going_on]
        events += engine.take([rows[i] for i in going_on], logits, at)
        held = []
        for i in going_on:
            row, guess = rows[i], guessed[i][new[i] : new[i] + 1]
            new[i] += 1
            lives = engine.owners[row.slots[0]] is row
            held += [i] if lives and guess == row.tokens[-1:] else []
        going_on = held
    engine.cache.moved_on(new)
    return events


def pass_over(
    engine: "Engine", rows: Sequence[Row], guessed: Sequence[list[int]]
) -> tuple[Tensor, list[int]]:
    """One pass over the last token of each row and its guesses -> (logits [N, V], the index of
    those after each row's last token).

    What pads the rows is left out, unless rows have adapters of their own.
    """
    counts = [1 + len(guess) for guess in guessed]
    T, packing = max(counts), None
    last = engine.last[: len(rows)].tolist()
    ids = torch.tensor(
        [
            [token, *guess] + [0] * (T - 1 - len(guess))
            for token, guess in zip(last, guessed, strict=True)
        ]
    )
    first = [i * T for i in range(len(rows))]
    if not engine.mixtures and sum(counts) < ids.numel():
        packing = Packing.of(torch.tensor(counts), torch.arange(sum(counts)))
        first = [sum(counts[:i]) for i in range(len(rows))]
    engine.cache.begin(len(rows))
    with seated(engine.mixtures, [row.request.entry for row in rows]):
        hidden = engine.model.hidden(ids, cache=engine.cache, packing=packing)
        return engine.model.logits(hidden).flatten(0, 1), first
