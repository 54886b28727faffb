"""Next-token loss, with logits only where there is a label."""

import torch
import torch.nn.functional as F
from torch import Tensor

from adapters.rows import Rows
from data.batches import Labels
from files.errors import UserError
from model.language import LanguageModel
from model.packing import pick
from model.rope_scaling import positions_of
from train.loss_gradient import LossAndGradient, loss_and_gradient


def summed_loss(
    model: LanguageModel,
    ids: Tensor,
    weights: Tensor,
    lengths: Tensor | None = None,
    labels: Labels | None = None,
) -> Tensor:
    """Sum over tokens of weight x cross-entropy, float32 scalar.

    ids and weights [B, T] are right-padded, weights[:, 0] is unused; lengths int64 [B] of the rows
    (None: all are T). labels: what `batch_of` found in `weights`, and whether the rows are packed.
    A sum, not a mean: the caller divides by the weights of the whole step, so that neither
    accumulation nor padding nor splitting changes the gradient.
    """
    labels = labels_of(ids, weights) if labels is None else labels
    positions = positions_of(model, ids, lengths)
    hidden = model.hidden(ids, positions=positions, packing=labels.packing, prompts=labels.prompts)
    return loss_of(model, hidden, labels)


def labels_of(ids: Tensor, weights: Tensor) -> Labels:
    """The labels of right-padded rows, for callers without `batch_of`; a GPU is waited for."""
    row, place = weights[:, 1:].nonzero(as_tuple=True)  # position t predicts token t + 1
    places = row * ids.shape[1] + place
    prompts = weights[:, 1:].ne(0).int().argmax(dim=1) + 1
    return Labels(places, ids[row, place + 1], weights[row, place + 1], None, prompts)


def loss_of(model: LanguageModel, hidden: Tensor, labels: Labels) -> Tensor:
    """`summed_loss` from the last hidden states, rows [B, T, E] or packed tokens [1, L, E].

    Logits exist for CHUNK labelled tokens at a time, and only until their gradient is made, which
    is in the forward pass. Raises UserError for `Rows` at the embedding or the head.
    """
    outer = (*model.input_embedding.active, *model.lm_head.active)
    if any(isinstance(entry, Rows) for entry in outer):
        raise UserError(
            "adapters by row at the embedding or the head cannot be trained: "
            "the loss picks tokens out of their rows"
        )
    places, targets, weights = (tensor.to(hidden.device) for tensor in labels[:3])
    # [L, E]; packed tokens without a label did not leave the last block
    hidden = hidden[0] if labels.packing else pick(hidden, places)
    trained = [p for part in (model.lm_head, model.input_embedding) for p in part.parameters()]
    trained = list({id(p): p for p in trained if p.requires_grad}.values())
    if torch.is_grad_enabled():
        return LossAndGradient.apply(model, hidden, weights, targets, *trained)
    return loss_and_gradient(model, hidden, weights, targets, [])[0]


def plain_loss(model: LanguageModel, hidden: Tensor, weights: Tensor, targets: Tensor) -> Tensor:
    """Sum of weight x cross-entropy of hidden [L, E]: what `LossAndGradient` computes."""
    logits = model.logits(hidden)
    losses = F.cross_entropy(logits, targets.to(logits.device), reduction="none")
    return (weights.to(logits.device) * losses).sum()
