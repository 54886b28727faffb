"""Next-token loss, with logits only where there is a label."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from adapters.compose import Rows
from data.batches import Example, collate, micro_batches
from files.errors import UserError
from model.parts import CHUNK
from train.parallel import ALONE, Processes


def summed_loss(
    model: nn.Module, ids: Tensor, weights: Tensor, lengths: Tensor | None = None
) -> Tensor:
    """Sum over tokens of weight x cross-entropy, float32 scalar.

    ids and weights [B, T] are right-padded, weights[:, 0] is unused; lengths int64 [B] of the rows
    (None: all are T). A sum, not a mean: the caller divides by the weights of the whole step, so
    that neither accumulation nor padding nor splitting changes the gradient. Logits are made in
    chunks, and made again in the backward pass where there are several.
    """
    positions = positions_of(model, ids, lengths)
    return loss_of(model, model.hidden(ids, positions=positions), ids, weights)


def positions_of(model: nn.Module, ids: Tensor, lengths: Tensor | None) -> Tensor | None:
    """The positions [B, T] that right-padded rows need: None where counting them from 0 will do.

    Rope type dynamic computes the angles of a whole row from its last position: a pad has that of
    the last real token, so that no row depends on the longest of its micro-batch.
    """
    if lengths is None or not model.depends_on_length:
        return None
    return torch.arange(ids.shape[1], device=ids.device).minimum(lengths[:, None] - 1)


def loss_of(model: nn.Module, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """The same from the hidden states [B, T, C] of these ids."""
    if any(
        isinstance(entry, Rows)
        for site in (model.input_embedding, model.lm_head)
        for entry in site.active
    ):
        raise UserError(
            "adapters by row at the embedding or the head cannot be trained: the loss picks tokens out of their rows"
        )
    hidden = hidden[:, :-1]  # position t predicts token t + 1
    weights, targets = weights[:, 1:].to(hidden.device), ids[:, 1:].to(hidden.device)
    labelled = weights != 0
    hidden, weights, targets = (
        hidden[labelled],
        weights[labelled],
        targets[labelled],
    )  # [N, C], [N], [N]
    if len(targets) <= CHUNK:
        return chunk_loss(model, hidden, weights, targets)
    pieces = zip(hidden.split(CHUNK), weights.split(CHUNK), targets.split(CHUNK), strict=True)
    return torch.stack(
        [checkpoint(chunk_loss, model, *piece, use_reentrant=False) for piece in pieces]
    ).sum()


@torch.no_grad()
def mean_loss(
    model: nn.Module, rows: Sequence[Example], size: int, pad_id: int, processes: Processes = ALONE
) -> float:
    """The loss per token of these rows, weighted as in training, `size` of them at once and without dropout; each of several processes computes its
    share. The model is in training mode again behind it."""
    model.eval()
    mine = processes.share(dict(enumerate(micro_batches(rows, size))))
    total = sum(
        summed_loss(model, *collate(some, pad_id, model.device)).item() for some in mine.values()
    )
    model.train()
    return sum(processes.gather(total)) / sum(sum(row.weights[1:]) for row in rows)


def chunk_loss(model: nn.Module, hidden: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
    logits = model.logits(hidden)
    return (
        weights.to(logits.device)
        * F.cross_entropy(logits, targets.to(logits.device), reduction="none")
    ).sum()
