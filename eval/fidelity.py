"""How near a model comes to another with the same tokenizer, on a text: perplexity, and the KL divergence of what each says of the next token."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.errors import UserError

WINDOW = 256  # tokens that a model sees at once


@dataclass(frozen=True)
class Fidelity:
    """On `tokens` predicted tokens: perplexity of the reference and of the other model, and mean KL(reference || other) in nats a token."""

    tokens: int
    reference: float
    other: float
    divergence: float


@torch.inference_mode()
def predictions(model: nn.Module, ids: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """ids in windows -> the log-probabilities [T - 1, V] of every next token, float32 on the CPU, and those tokens [T - 1]. Raises UserError."""
    if len(ids) < 2:
        raise UserError("the text has fewer than two tokens: there is nothing to predict")
    for start in range(0, len(ids) - 1, WINDOW - 1):
        window = torch.tensor([ids[start : start + WINDOW]], device=model.input_embedding.weight.device)
        yield model(window)[0, :-1].log_softmax(dim=-1).cpu(), window[0, 1:].cpu()


def compare(reference: list[tuple[Tensor, Tensor]], other: Iterator[tuple[Tensor, Tensor]]) -> Fidelity:
    """The `predictions` of two models on the same ids; those of the reference are kept, so that the models need not be in memory together."""
    tokens, losses, divergence = 0, [0.0, 0.0], 0.0
    for (p, targets), (q, _) in zip(reference, other, strict=True):
        tokens += len(targets)
        losses = [loss - one.gather(1, targets[:, None]).sum().item() for loss, one in zip(losses, (p, q), strict=True)]
        divergence += (p.exp() * (p - q)).sum().item()
    return Fidelity(tokens, math.exp(losses[0] / tokens), math.exp(losses[1] / tokens), divergence / tokens)
