"""Batched beam search as in `transformers` 5 (length_penalty=1, early_stopping=False); tests
compare token for token."""

import math

import torch
from torch import Tensor

from adapters.compose import by_row
from files.errors import UserError
from model.language import LanguageModel

NEVER = -1e9  # added to the score of what must not be chosen; finite, as there may be nothing else


def beam_search(
    model: LanguageModel,
    ids: Tensor,
    mask: Tensor | None,
    max_new_tokens: int,
    beams: int,
    ends: Tensor,
    vocab_size: int | None,
) -> list[list[int]]:
    """Continue ids int64 [B, T] with mask [B, T + max_new_tokens] or None.

    Returns the best continuation of each row, without the stop token. A running beam scores the sum
    of its log-probabilities, a finished one their mean, its stop token included. A row is over, and
    leaves the batch, when it has `beams` finished ones and no running mean is better than the worst
    of them. Probabilities are over all rows of the head, but only ids below vocab_size are chosen.
    ends: ids that stop a beam. Raises UserError for adapters by row.
    """
    if by_row(model):
        raise UserError("adapters by row (Rows) need beams=1: each beam is a row of the batch")
    B, T = ids.shape
    device = ids.device
    cache = model.new_cache(B, T + max_new_tokens)
    rows = torch.arange(B, device=device)  # which row of the request each row of the batch is
    # Of the running beams, of which there is one to begin with.
    scores = torch.tensor([0.0] + [NEVER] * (beams - 1), device=device).repeat(B, 1)
    texts = ids.new_empty(B, beams, 0)
    # Of each row mean log-probability and tokens, the best first.
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in range(B)]
    # Candidates: `beams` of them go on even if every beam ends in every way.
    kept = max(2, 1 + len(ends)) * beams
    for step in range(1, max_new_tokens + 1):
        hidden = model.hidden(ids, None if mask is None else mask[:, : T + step - 1], cache=cache)[
            :, -1
        ]
        log_probs = model.logits(hidden).log_softmax(dim=-1)[:, :vocab_size].to(device)
        if step == 1:  # the prompt was computed once for all beams of a row
            log_probs, beam_of = (
                log_probs.repeat_interleave(beams, dim=0),
                torch.arange(B, device=device).repeat_interleave(beams),
            )
            cache.select(beam_of)
            mask = None if mask is None else mask[beam_of]
        R, V = len(rows), log_probs.shape[-1]
        totals = (scores[:, :, None] + log_probs.view(R, beams, V)).flatten(1)
        totals, where = totals.topk(min(kept, beams * V))  # [R, kept], the best first
        beam, token = where // V, where % V
        stopped = torch.isin(token, ends)
        over = stopped | (step == max_new_tokens)
        texts = torch.cat(
            (texts.gather(1, beam[:, :, None].expand(-1, -1, step - 1)), token[:, :, None]), dim=-1
        )
        found_by = [finished[row] for row in rows.tolist()]
        for r, c in over[:, :beams].nonzero().tolist():  # those further down only stand by
            found = found_by[r]
            found.append(
                (float(totals[r, c] / step), texts[r, c, : step - int(stopped[r, c])].tolist())
            )
            found.sort(key=lambda scored: -scored[0])
            del found[beams:]
        scores, choice = (totals + over * NEVER).topk(beams)
        texts = texts.gather(1, choice[:, :, None].expand(-1, -1, step))
        worst = [found[-1][0] if len(found) == beams else -math.inf for found in found_by]
        going = scores[:, 0] / step > torch.tensor(worst, device=device)
        if step == max_new_tokens or not going.any():
            break
        source = (torch.arange(R, device=device)[:, None] * beams + beam.gather(1, choice))[
            going
        ].flatten()
        cache.select(source)
        mask = None if mask is None else mask[source]
        rows, scores, texts = rows[going], scores[going], texts[going]
        ids = texts[:, :, -1].reshape(-1, 1)
    return [found[0][1] if found else [] for found in finished]
