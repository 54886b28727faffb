"""How near a model comes to another with the same tokenizer, on a text: perplexity, and the KL divergence of what each says of the next token."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.batches import Example

WINDOW = 256  # tokens that a model sees at once


@dataclass(frozen=True)
class Fidelity:
    """On `tokens` predicted tokens: perplexity of the reference and of the other model, and mean KL(reference || other) in nats a token."""

    tokens: int
    reference: float
    other: float
    divergence: float


def windows(ids: list[int]) -> list[Example]:
    """A text as rows of at most WINDOW tokens; each token but the first is predicted once."""
    return [
        Example(ids[start : start + WINDOW], [1.0] * len(ids[start : start + WINDOW]))
        for start in range(0, max(1, len(ids) - 1), WINDOW - 1)
    ]


@torch.inference_mode()
def predictions(model: nn.Module, rows: list[Example]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each row the log-probabilities [N, V] in front of its tokens with a loss weight, float32 on the CPU, and those tokens [N]."""
    for row in rows:
        ids = torch.tensor([row.ids], device=model.input_embedding.weight.device)
        counted = torch.tensor(row.weights[1:], device=ids.device) > 0
        yield (
            model.logits(model.hidden(ids)[0, :-1][counted]).log_softmax(dim=-1).cpu(),
            ids[0, 1:][counted].cpu(),
        )


def compare(
    reference: list[tuple[Tensor, Tensor]], other: Iterator[tuple[Tensor, Tensor]]
) -> Fidelity:
    """The `predictions` of two models on the same rows; those of the reference are kept, so that the models need not be in memory together."""
    tokens, losses, divergence = 0, [0.0, 0.0], 0.0
    for (p, targets), (q, _) in zip(reference, other, strict=True):
        tokens += len(targets)
        losses = [
            loss - one.gather(1, targets[:, None]).sum().item()
            for loss, one in zip(losses, (p, q), strict=True)
        ]
        divergence += (p.exp() * (p - q)).sum().item()
    return Fidelity(
        tokens, math.exp(losses[0] / tokens), math.exp(losses[1] / tokens), divergence / tokens
    )
