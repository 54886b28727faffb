"""Batched decoding with a key/value cache: greedy and sampled. Beams are in eval/beams.py.

`generate` continues token ids, `generate_text` texts.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from adapters.compose import rows_in_use
from data.batches import encode_prompt
from data.prompts import Template
from data.prompts import template as template_named
from data.stops import stop_ids
from eval.engine import Engine, Request
from eval.room import too_long
from eval.sampling import Sampling, check
from files.errors import UserError
from model.language import LanguageModel
from model.tokenizer import Tokenizer


@torch.inference_mode()
def generate_text(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    template: Template | str | None = None,
    max_new_tokens: int = 64,
    beams: int = 1,
    sampling: Sampling | None = None,
    seeds: Sequence[int] | None = None,
    stream: Callable[[int, str], None] | None = None,
) -> list[str]:
    """Continue texts in one batch -> the new text of each, without the prompt.

    template: None continues the texts as they stand; a Template or its name (alpaca, paper-v1,
    plain, chat) makes each the instruction of a prompt. The other options are those of `generate`;
    `sampling` without `seeds` gives text i the seed i. A text ends where the model ends it, or
    after max_new_tokens.

    stream(i, piece) is called with each new piece of text i; the pieces of a text joined are its
    result. Beams cannot be streamed.

    The adapters in use are those that `attach`, `load_adapter` and `adapters.use` put in use: with
    `use(model, [])` the base answers. Give the template that the adapter was trained with: it is
    in the `run` section that `load_adapter` returns, for `data.prompts.stored_template`. With
    `adapters.Rows` entry i of its adapters is for text i. Raises UserError as `generate` does, and
    for an unknown template.
    """
    if isinstance(texts, str):
        raise UserError(f"texts should be a list: generate_text(model, tokenizer, [{texts!r:.50}])")
    if isinstance(template, str):
        template = template_named(template, tokenizer)
    prompts = [
        encode_prompt(tokenizer, {"instruction": text}, template)[1]
        if template
        else tokenizer.encode(text)
        for text in texts
    ]
    if not prompts:
        return []
    if sampling is not None and seeds is None:
        seeds = range(len(prompts))
    tokens: list[list[int]] = [[] for _ in prompts]
    shown = [""] * len(prompts)

    def show(rows: list[int], new: list[int]) -> None:
        for row, token in zip(rows, new, strict=True):
            tokens[row].append(token)
            text = tokenizer.decode(tokens[row], after=prompts[row])
            if text.startswith(shown[row]) and not text.endswith("\ufffd"):  # half a character
                stream(row, text[len(shown[row]) :])
                shown[row] = text

    outputs = generate(
        model,
        *left_pad(prompts, tokenizer.pad_id or 0, model.device),
        max_new_tokens,
        beams,
        stop_ids(tokenizer),
        tokenizer.size,
        stream_rows=None if stream is None else show,
        sampling=sampling,
        seeds=seeds,
    )
    results = [
        tokenizer.decode(output, after=prompt)
        for output, prompt in zip(outputs, prompts, strict=True)
    ]
    for row, text in enumerate(results):
        if stream is not None and len(text) > len(shown[row]):
            stream(row, text[len(shown[row]) :])
    return results


def left_pad(
    prompts: Sequence[list[int]], pad_id: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Rows of token ids -> (ids int64 [B, T] padded on the left, mask int64 [B, T])."""
    length = max(map(len, prompts))
    ids = [[pad_id] * (length - len(row)) + row for row in prompts]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


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
    return generate_rows(
        model,
        [
            Request(
                prompt, max_new_tokens, stop_ids, beams, sampling, seeds[i] if seeds else 0, stop, i
            )
            for i, prompt in enumerate(prompts)
        ],
        vocab_size,
        stream,
        stream_rows,
    )


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
