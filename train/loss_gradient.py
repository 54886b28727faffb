"""Cross-entropy with its gradient made in the forward pass: the fast form of `plain_loss`."""

import torch
from torch import Tensor
from torch.autograd import Function

from model.language import LanguageModel
from model.parts import CHUNK

KEEP = (lambda tensor: tensor, lambda tensor: tensor)  # saved tensors stay where they are


class LossAndGradient(Function):
    """`plain_loss`, with the gradient made in the forward pass while the logits are there.

    So the head's product is made once, and no logits are kept for the backward pass. `trained` are
    parameters that the head may depend on: its own, its adapters', the embedding's.
    """

    @staticmethod
    def forward(ctx, model: LanguageModel, hidden: Tensor, weights, targets, *trained: Tensor):
        needed = [t for t in (hidden, *trained) if t.requires_grad]
        ctx.scale = 64.0 if hidden.dtype == torch.float16 else 1.0  # else small gradients are lost
        loss, gradients = loss_and_gradient(model, hidden, weights, targets, needed, ctx.scale)
        found = dict(zip(map(id, needed), gradients, strict=True))
        ctx.save_for_backward(*(found.get(id(t)) for t in (hidden, *trained)))
        return loss

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradient / ctx.scale
        made = (None if t is None else t * gradient.to(t.device) for t in ctx.saved_tensors)
        hidden, *trained = made
        return None, hidden, None, None, *trained


class Begin(Function):
    """A scalar whose gradient with respect to logits is what the logits hold by now.

    `torch.autograd.grad(logits, inputs, gradient)` says the same and imports sympy: 0.4 s.
    """

    @staticmethod
    def forward(ctx, logits: Tensor) -> Tensor:
        ctx.gradient = logits.detach()
        return logits.new_zeros(())

    @staticmethod
    def backward(ctx, _: Tensor) -> Tensor:
        return ctx.gradient


def loss_and_gradient(
    model: LanguageModel,
    hidden: Tensor,
    weights: Tensor,
    targets: Tensor,
    needed: list[Tensor],
    scale: float = 1.0,
) -> tuple[Tensor, list[Tensor | None]]:
    """`plain_loss` and scale x its gradients with respect to `needed`: `hidden`, parameters.

    targets: ids int64 [L], or the logits of a teacher [L, V] (train/teacher.py), from which the
    loss of a token is KL(teacher || model).
    """
    device = model.lm_head.weight.device
    weights, targets = weights.to(device), targets.to(device)
    losses = torch.empty_like(weights)  # [L]
    gradients: list[Tensor | None] = [None] * len(needed)
    whole = next((i for i, t in enumerate(needed) if t is hidden), None)
    if whole is not None:
        gradients[whole] = torch.empty_like(hidden)
    for start in range(0, len(hidden), CHUNK):
        chunk = slice(start, start + CHUNK)
        wanted = targets[chunk]
        loss_of = divergence if wanted.is_floating_point() else cross_entropy
        with torch.set_grad_enabled(bool(needed)), torch.autograd.graph.saved_tensors_hooks(*KEEP):
            h = hidden[chunk].detach().requires_grad_(whole is not None)
            logits = model.head(h)
            start_of_backward = Begin.apply(logits)
        losses[chunk] = loss_of(logits.detach(), wanted, scale * weights[chunk])
        if not needed:
            continue
        inputs = [h if t is hidden else t for t in needed]
        # by now `logits` holds the gradient of the loss with respect to itself
        parts = torch.autograd.grad(start_of_backward, inputs, allow_unused=True)
        for i, part in enumerate(parts):
            if i == whole:
                gradients[i][chunk] = part
            elif part is not None:
                gradients[i] = part if gradients[i] is None else gradients[i].add_(part)
    return (weights * losses).sum(), gradients


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """-log softmax(logits)[targets], float32 [L]; logits [L, V] become weights x its gradient.

    softmax(logits) - 1 at the target, computed in float32: on a CPU a few rows at a time, which
    then fit its cache.
    """
    L, V = logits.shape
    step = max(1, 2**20 // V) if logits.device.type == "cpu" else max(1, L)
    losses = torch.empty_like(weights)
    for start in range(0, L, step):
        rows = slice(start, start + step)
        target, weight = targets[rows, None], weights[rows, None]
        x = logits[rows].float()
        top = x.amax(dim=-1, keepdim=True)
        at_target = x.gather(1, target)
        total = x.sub_(top).exp_().sum(dim=-1, keepdim=True)
        losses[rows] = (total.log() + (top - at_target))[:, 0]
        x.mul_(weight / total).scatter_add_(1, target, -weight)
        if x.dtype != logits.dtype:
            logits[rows] = x
    return losses


def divergence(logits: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    """KL(p || q) of p = softmax(wanted) and q = softmax(logits), float32 [L]; logits and wanted
    [L, V]. The logits become weights x the gradient with respect to them, q - p."""
    p, q = wanted.float().log_softmax(dim=-1), logits.float().log_softmax(dim=-1)
    losses = (p.exp() * (p - q)).sum(dim=-1)
    logits.copy_(weights[:, None] * (q.exp_() - p.exp_()))
    return losses
