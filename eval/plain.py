"""Decoding as it is defined: one row, whose whole text is read again for every token.

The reference of eval/engine.py, whose answers are the same tokens: it keeps keys and values, reads
what rows have in common once, and has many rows in a pass.
"""

import torch

from eval.beams import Beams, candidates
from eval.requests import Request
from eval.sampling import choose
from model.language import LanguageModel


@torch.inference_mode()
def continue_row(
    model: LanguageModel, request: Request, vocab_size: int | None = None
) -> list[int]:
    """The new tokens of a request, the likeliest or drawn; only ids below vocab_size are chosen."""
    if request.beams > 1:
        return best_beam(model, request, vocab_size)
    generator = torch.Generator().manual_seed(request.seed)
    new: list[int] = []
    while len(new) < request.max_new_tokens:
        hidden = model.hidden(torch.tensor([[*request.ids, *new]], device=model.device))
        logits = model.logits(hidden[:, -1])[:, :vocab_size]  # of the next token
        token = int(choose(logits, [request.sampling], [generator]))
        if token in request.stop_ids:
            break
        new.append(token)
        if request.stop and request.stop(new):
            break
    return new


def best_beam(model: LanguageModel, request: Request, vocab_size: int | None) -> list[int]:
    """The likeliest text that beam search finds."""
    beams = Beams(request.beams, request.max_new_tokens, request.stop_ids)
    going_on = True
    while going_on:
        texts = [[*request.ids, *text] for text in beams.texts]
        hidden = model.hidden(torch.tensor(texts, device=model.device))
        logits = model.logits(hidden[:, -1])[None]
        ((totals, parents, tokens),) = candidates(logits, [beams], vocab_size)
        going_on = beams.advance(totals, parents, tokens) is not None
    return beams.best
