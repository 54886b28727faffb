"""Texts from texts, and from token ids (`generate`, `generate_rows`: eval/decode.py)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from data.batches import encode_prompts
from data.prompts import Template
from data.prompts import template as template_named
from data.stops import stop_ids
from eval.decode import generate, generate_rows
from eval.sampling import Sampling
from eval.text import TextStream
from files.errors import UserError
from model.language import LanguageModel
from model.tokenizer import Tokenizer

__all__ = ["generate", "generate_rows", "generate_text", "left_pad"]


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
    `use(model, [])` the base answers. Give the template that the adapter was trained with, which
    `stored_template` (data/stored_template.py) makes of the `run` section that `load_adapter`
    returns. With `adapters.Rows` entry i of its adapters is for text i. Raises UserError as
    `generate` does, and for an unknown template.
    """
    if isinstance(texts, str):
        raise UserError(f"texts should be a list: generate_text(model, tokenizer, [{texts!r:.50}])")
    if isinstance(template, str):
        template = template_named(template, tokenizer)
    if template:
        rows = [{"instruction": text} for text in texts]
        prompts = [ids for _, ids in encode_prompts(tokenizer, rows, template)]
    else:
        prompts = [tokenizer.encode(text) for text in texts]
    if not prompts:
        return []
    if sampling is not None and seeds is None:
        seeds = range(len(prompts))
    shown = [TextStream(tokenizer, prompt) for prompt in prompts]

    def show(rows: list[int], new: list[int]) -> None:
        for row, token in zip(rows, new, strict=True):
            if piece := shown[row].push(token):
                stream(row, piece)

    ids, mask = left_pad(prompts, tokenizer.pad_id or 0, model.device)
    outputs = generate(
        model, ids, mask, max_new_tokens, beams, stop_ids(tokenizer), tokenizer.size,
        stream_rows=None if stream is None else show, sampling=sampling, seeds=seeds,
    )  # fmt: skip
    pairs = zip(outputs, prompts, strict=True)
    results = [tokenizer.decode(output, after=prompt) for output, prompt in pairs]
    for row, text in enumerate(shown if stream else []):
        if piece := text.finish():
            stream(row, piece)
    return results


def left_pad(
    prompts: Sequence[list[int]], pad_id: int, device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """Rows of token ids -> (ids int64 [B, T] padded on the left, mask int64 [B, T])."""
    length = max(map(len, prompts))
    ids = [[pad_id] * (length - len(row)) + row for row in prompts]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
