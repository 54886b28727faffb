"""Log-likelihoods of given continuations, for multiple-choice tasks and perplexity."""

from collections.abc import Sequence

import torch
from torch import Tensor

from adapters.compose import rows_in_use
from files.errors import UserError, short_of_memory
from model.language import LanguageModel
from model.packed import pack
from model.parts import CHUNK
from model.tokens import check_ids


def log_likelihoods(
    model: LanguageModel,
    pairs: Sequence[tuple[list[int], list[int]]],
    *,
    batch_size: int = 16,
    pad_id: int = 0,
    vocab_size: int | None = None,
) -> list[tuple[float, bool]]:
    """For each (context ids, continuation ids), in order: (log p(continuation | context) in nats,
    whether greedy decoding would generate the continuation).

    Probabilities are over all rows of the head; greedy decoding chooses among ids below vocab_size
    (None: all), as `generate` does. Batches are of similar length. Raises UserError for an empty
    context or continuation, adapters by row, and when out of memory.
    """
    for number, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            empty = "continuation" if context else "context"
            raise UserError(f"pair {number + 1} has an empty {empty}; both need at least one token")
    if type(batch_size) is not int or batch_size < 1:
        raise UserError(f"batch_size should be 1 or more, not {batch_size!r:.50}")
    if rows_in_use(model):
        raise UserError(
            "adapters by row (Rows) have no likelihoods: pairs are put into batches by their length"
        )
    check_ids((ids for pair in pairs for ids in pair), model.input_embedding.in_features)
    # The longest first: it needs most memory.
    by_length = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
    results: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
    model.eval()
    pack(model)
    for start in range(0, len(pairs), batch_size):
        batch = by_length[start : start + batch_size]
        with short_of_memory(
            f"on {model.device} with {batch_size} texts at once: lower batch_size"
        ):
            figures = of_batch(model, [pairs[i] for i in batch], pad_id, vocab_size)
        for i, figure in zip(batch, figures, strict=True):
            results[i] = figure
    return results


@torch.inference_mode()
def of_batch(
    model: LanguageModel,
    pairs: list[tuple[list[int], list[int]]],
    pad_id: int,
    vocab_size: int | None,
) -> list[tuple[float, bool]]:
    """`log_likelihoods` of one batch: one pass, logits only where a continuation is predicted."""
    device = next(model.parameters()).device
    rows = [context + own[:-1] for context, own in pairs]  # the last token is only predicted
    T = max(map(len, rows))
    ids = torch.tensor([row + [pad_id] * (T - len(row)) for row in rows], device=device)
    # Padding on the right would not need a mask but for rotary angles that depend on the length.
    mask = torch.tensor([[1] * len(row) + [0] * (T - len(row)) for row in rows], device=device)
    hidden = model.hidden(ids, None if mask.all() else mask)
    hidden = torch.cat(
        [hidden[r, len(context) - 1 : len(rows[r])] for r, (context, _) in enumerate(pairs)]
    )  # [N, C]
    targets = torch.tensor(
        [token for _, continuation in pairs for token in continuation], device=device
    )
    pieces = [
        score(model.logits(some), chosen, vocab_size)
        for some, chosen in zip(hidden.split(CHUNK), targets.split(CHUNK), strict=True)
    ]
    lengths = [len(continuation) for _, continuation in pairs]
    log_probs, greedy = (
        torch.cat(parts).cpu().split(lengths) for parts in zip(*pieces, strict=True)
    )
    return [
        (float(logs.double().sum()), bool(first.all()))
        for logs, first in zip(log_probs, greedy, strict=True)
    ]


def score(logits: Tensor, targets: Tensor, vocab_size: int | None) -> tuple[Tensor, Tensor]:
    """Logits [N, V], targets [N] -> their log-probabilities [N], whether each is likeliest [N]."""
    targets = targets.to(logits.device)
    log_probs = logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(dim=-1)
    return log_probs, logits[:, :vocab_size].argmax(dim=-1) == targets
