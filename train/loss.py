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
from train.parallel import SINGLE, Processes


def summed_loss(
    model: nn.Module, ids: Tensor, weights: Tensor, lengths: Tensor | None = None
) -> Tensor:
    """Sum over tokens of weight x cross-entropy, float32 scalar.

    ids and weights [B, T] are right-padded, weights[:, 0] is unused; lengths int64 [B] of the rows
    (None: all are T). A sum, not a mean: the caller divides by the weights of the whole step, so
    that neither accumulation nor padding nor splitting changes the gradient.
    """
    positions = positions_of(model, ids, lengths)
    return loss_of(model, model.hidden(ids, positions=positions), ids, weights)


def positions_of(model: nn.Module, ids: Tensor, lengths: Tensor | None) -> Tensor | None:
    """The positions [B, T] of right-padded rows; None: counting from 0 is right.

    Dynamic rope scaling computes the angles of a row from its last position: a pad has the position
    of the last real token, so that no row depends on the longest of its micro-batch.
    """
    if lengths is None or not model.depends_on_length:
        return None
    return torch.arange(ids.shape[1], device=ids.device).minimum(lengths[:, None] - 1)


def loss_of(model: nn.Module, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """`summed_loss` from the last hidden states [B, T, C] of these ids.

    Logits are computed in chunks of labelled tokens; if there are several chunks, each is computed
    again in the backward pass. Raises UserError for `Rows` at the embedding or the head.
    """
    outer = (*model.input_embedding.active, *model.lm_head.active)
    if any(isinstance(entry, Rows) for entry in outer):
        raise UserError(
            "adapters by row at the embedding or the head cannot be trained: "
            "the loss picks tokens out of their rows"
        )
    hidden = hidden[:, :-1]  # position t predicts token t + 1
    weights, targets = weights[:, 1:].to(hidden.device), ids[:, 1:].to(hidden.device)
    labelled = weights != 0
    hidden, weights, targets = hidden[labelled], weights[labelled], targets[labelled]  # [N, C], [N]
    if len(targets) <= CHUNK:
        return chunk_loss(model, hidden, weights, targets)
    chunks = zip(hidden.split(CHUNK), weights.split(CHUNK), targets.split(CHUNK), strict=True)
    losses = [checkpoint(chunk_loss, model, *chunk, use_reentrant=False) for chunk in chunks]
    return torch.stack(losses).sum()


def chunk_loss(model: nn.Module, hidden: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
    logits = model.logits(hidden)
    losses = F.cross_entropy(logits, targets.to(logits.device), reduction="none")
    return (weights.to(logits.device) * losses).sum()


@torch.no_grad()
def mean_loss(
    model: nn.Module, rows: Sequence[Example], size: int, pad_id: int, processes: Processes = SINGLE
) -> float:
    """The loss per token of these rows, weighted as in training but without dropout.

    `size` rows go through the model at once; each process computes its share. Leaves the model in
    training mode.
    """
    model.eval()
    mine = processes.share(dict(enumerate(micro_batches(rows, size))))
    total = sum(
        summed_loss(model, *collate(batch, pad_id, model.device)).item() for batch in mine.values()
    )
    model.train()
    return sum(processes.gather(total)) / sum(sum(row.weights[1:]) for row in rows)
