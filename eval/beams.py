"""Beam search as in `transformers` 5 (length_penalty=1, early_stopping=False); tests compare token
for token."""

import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

NEVER = -1e9  # added to the score of what must not be chosen; finite, as there may be nothing else


class Beams:
    """The beams of one row.

    A running beam scores the sum of its log-probabilities, a finished one their mean, its stop
    token included. The row is over when it has `width` finished ones and no running mean is better
    than the worst of them, or after `longest` tokens.
    """

    def __init__(self, width: int, longest: int, stop_ids: Collection[int]):
        self.width, self.longest, self.stop_ids = width, longest, frozenset(stop_ids)
        # There is one to begin with.
        self.scores = [0.0] + [NEVER] * (width - 1)
        self.texts: list[list[int]] = [[] for _ in range(width)]
        # Mean log-probability and tokens, the best first.
        self.finished: list[tuple[float, list[int]]] = []
        # Candidates: `width` of them go on even if every beam ends in every way.
        self.kept = max(2, 1 + len(self.stop_ids)) * width

    @property
    def best(self) -> list[int]:
        return self.finished[0][1] if self.finished else []

    def advance(self, totals: list[float], beams: list[int], tokens: list[int]) -> list[int] | None:
        """Take the next token of every beam from candidates, the best first.

        totals: their scores; beams and tokens: which beam each continues, by what. Returns the beam
        that each of the new ones continues; None: the row is over.
        """
        step = len(self.texts[0]) + 1
        stopped = [token in self.stop_ids for token in tokens]
        over = [stop or step == self.longest for stop in stopped]
        for c in range(min(self.width, len(totals))):  # those further down only stand by
            if over[c]:
                text = self.texts[beams[c]]
                text = text if stopped[c] else [*text, tokens[c]]
                self.finished.append((totals[c] / step, text))
                self.finished.sort(key=lambda scored: -scored[0])
                del self.finished[self.width :]
        order = sorted(range(len(totals)), key=over.__getitem__)[: self.width]
        self.scores = [totals[c] + over[c] * NEVER for c in order]
        self.texts = [[*self.texts[beams[c]], tokens[c]] for c in order]
        worst = self.finished[-1][0] if len(self.finished) == self.width else -math.inf
        if step == self.longest or not self.scores[0] / step > worst:
            return None
        return [beams[c] for c in order]


def candidates(
    logits: Tensor, rows: Sequence[Beams], vocab_size: int | None
) -> list[tuple[list[float], list[int], list[int]]]:
    """Logits [B, width, V] of rows of one width -> of each (totals, beams, tokens) as `advance`
    takes them.

    Probabilities are over all rows of the head, but only ids below vocab_size are chosen.
    """
    log_probs = logits.log_softmax(dim=-1)[..., :vocab_size]
    scores = torch.tensor([row.scores for row in rows], device=logits.device)
    totals, V = (scores[:, :, None] + log_probs).flatten(1), log_probs.shape[-1]
    kept = min(max(row.kept for row in rows), totals.shape[1])
    totals, where = totals.topk(kept)
    found = []
    for row, values, places in zip(rows, totals.tolist(), where.tolist(), strict=True):
        places = places[: row.kept]
        found.append((values[: row.kept], [at // V for at in places], [at % V for at in places]))
    return found
