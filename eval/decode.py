"""Batched decoding of token ids: greedy, sampled (eval/sampling.py) or by beams (eval/beams.py)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adapters.rows import rows_in_use
from eval.engine import Engine, Request
from eval.room import too_long
from eval.sampling import Sampling, check
from files.errors import UserError
from model.language import LanguageModel


@torch.inference_mode()
def generate(
    model: LanguageModel,
    ids: Tensor,
    mask: Tensor | None = None,
    max_new_tokens: int = 12,
    beams: int = 1,
    stop_ids: Sequence[int] = (),
    vocab_size: int | None = None,
    stream: Callable[[list[int]], None] | None = None,
    *,
    stream_rows: Callable[[list[int], list[int]], None] | None = None,
    sampling: Sampling | None = None,
    seeds: Sequence[int] | None = None,
    stop: Callable[[list[int]], bool] | None = None,
) -> list[list[int]]:
    """Continue ids int64 [B, T] -> the new tokens of each row, without the stop token.

    mask: int64 [B, T], 1 for a real token; rows are padded on the left. Decoding is greedy,
    unless `sampling` is given (row i has its own generator, seeded seeds[i]) or beams > 1.
    Only ids below vocab_size are chosen (None: all; GPT-J and OPT have more rows than tokens).
    A row ends at a stop id, where stop(its new tokens) is True (they are kept), or after
    max_new_tokens; finished rows leave the batch. stream(tokens) is called with the new tokens of
    each step, stream_rows(rows, tokens) also with their row numbers.
    Raises UserError for rows without a real token and for options that exclude each other.
    """
    B, T = ids.shape
    check(B, beams, sampling, seeds)
    if beams > 1 and (stream or stream_rows or stop):
        raise UserError(
            f"beams = {beams}: `stream` and `stop` need beams=1, as the tokens of the best "
            "beam are known at the end only"
        )
    if T == 0 or (mask is not None and not mask.bool().any(dim=1).all()):
        raise UserError("cannot continue an empty prompt; give at least one token")
    if mask is not None and not mask[:, -1].bool().all():
        raise UserError("prompts must be padded on the left: the last token of a row is a pad")
    prompts = ids.tolist()
    if mask is not None:
        prompts = [row[-n:] for row, n in zip(prompts, mask.sum(dim=1).tolist(), strict=True)]
    requests = [
        Request(prompt, max_new_tokens, stop_ids, beams, sampling, seed, stop, i)
        for i, (prompt, seed) in enumerate(zip(prompts, seeds or [0] * B, strict=True))
    ]
    return generate_rows(model, requests, vocab_size, stream, stream_rows)


def generate_rows(
    model: LanguageModel,
    requests: Sequence[Request],
    vocab_size: int | None = None,
    stream: Callable[[list[int]], None] | None = None,
    stream_rows: Callable[[list[int], list[int]], None] | None = None,
) -> list[list[int]]:
    """The new tokens of each request, all at the same time; arguments as in `generate`."""
    for rows in rows_in_use(model):
        rows.check(len(requests))
    outputs: list[list[int]] = [[] for _ in requests]
    if not requests or requests[0].max_new_tokens < 1:
        return outputs
    length = max(len(request.ids) + request.max_new_tokens for request in requests)
    engine = Engine(model, sum(request.beams for request in requests), length, vocab_size)
    for request in requests:
        engine.submit(request)
    while not engine.is_idle:
        events = engine.step()
        for event in events:
            outputs[event.number] += event.tokens
            if event.ended == "positions":
                raise UserError(too_long(model))
        new = [(event.number, token) for event in events for token in event.tokens]
        if stream is not None:
            stream([token for _, token in new])
        if stream_rows is not None:
            stream_rows([row for row, _ in new], [token for _, token in new])
    return outputs
