"""Batched greedy decoding with a key/value cache."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from adapters.compose import by_row
from model.errors import UserError


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
) -> list[list[int]]:
    """Continue ids int64 [B, T] (left-padded, mask 1 = real token) greedily -> new tokens of each row, without the stop token.

    Only ids below vocab_size are chosen (GPT-J and OPT have more rows than tokens; None: all).
    A row ends at a stop id or after max_new_tokens; finished rows leave the batch. `stream` sees each step's new tokens.
    Raises UserError for beams > 1, which this version does not have, and for rows without a real token.
    """
    if beams != 1:
        raise UserError(f"beams = {beams}: beam search is not in this version; use beams=1")
    B, T = ids.shape
    if T == 0 or (mask is not None and not mask.bool().any(dim=1).all()):
        raise UserError("cannot continue an empty prompt; give at least one token")
    if mask is None or mask.bool().all():
        mask = None
    else:
        if not mask[:, -1].bool().all():
            raise UserError("prompts must be padded on the left: the last token of a row is a pad")
        mask = torch.cat((mask, mask.new_ones(B, max_new_tokens)), dim=1)
    cache = model.new_cache(B, T + max_new_tokens)
    outputs: list[list[int]] = [[] for _ in range(B)]
    rows = torch.arange(B, device=ids.device)  # which row of the request each row of the batch is
    done = torch.zeros(B, dtype=torch.bool, device=ids.device)
    stop = torch.tensor(list(stop_ids), device=ids.device, dtype=torch.long)
    for step in range(max_new_tokens):
        seen = None if mask is None else mask[:, : T + step]
        hidden = model.hidden(ids, seen, cache=cache)
        token = model.logits(hidden[:, -1])[:, :vocab_size].argmax(dim=-1)  # [rows]
        done |= torch.isin(token, stop)
        for row, new in zip(rows[~done].tolist(), token[~done].tolist(), strict=True):
            outputs[row].append(new)
        if stream is not None:
            stream(token[~done].tolist())
        if done.all():
            break
        if mask is not None:
            mask[done, T + step :] = 0  # a finished row takes no further positions
        if done.sum() * 2 >= len(done) and not by_row(model):  # go on with the unfinished rows only
            mask = None if mask is None else mask[~done]
            cache.keys, cache.values = cache.keys[:, ~done], cache.values[:, ~done]
            rows, token, done = rows[~done], token[~done], done[~done]
        ids = token[:, None]
    return outputs
