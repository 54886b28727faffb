"""Two models with the same tokenizer on a text: their perplexities and the KL divergence of their
next-token distributions."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from data.batches import Example
from model.language import LanguageModel

WINDOW = 256  # tokens that a model sees at once


@dataclass(frozen=True)
class Fidelity:
    """Two models compared on a text."""

    tokens: int  # predicted
    reference: float  # perplexity
    other: float  # perplexity
    divergence: float  # mean KL(reference || other), nats a token


def windows(ids: list[int]) -> list[Example]:
    """A text as rows of at most WINDOW tokens; each token but the first is predicted once."""
    return [
        Example(ids[start : start + WINDOW], [1.0] * len(ids[start : start + WINDOW]))
        for start in range(0, max(1, len(ids) - 1), WINDOW - 1)
    ]


@torch.inference_mode()
def predictions(model: LanguageModel, rows: list[Example]) -> Iterator[tuple[Tensor, Tensor]]:
    """For each row its tokens with a loss weight [N], and before them the log-probabilities of the
    next token [N, V], float32 on the CPU: (log-probabilities, tokens)."""
    for row in rows:
        ids = torch.tensor([row.ids], device=model.input_embedding.weight.device)
        counted = torch.tensor(row.weights[1:], device=ids.device) > 0
        log_probs = model.logits(model.hidden(ids)[0, :-1][counted]).log_softmax(dim=-1)
        yield log_probs.cpu(), ids[0, 1:][counted].cpu()


def compare(
    reference: list[tuple[Tensor, Tensor]], other: Iterator[tuple[Tensor, Tensor]]
) -> Fidelity:
    """Compare the `predictions` of two models on the same rows.

    Those of the reference are a list, so that the models need not be in memory together.
    """
    tokens, losses, divergence = 0, [0.0, 0.0], 0.0
    for (p, targets), (q, _) in zip(reference, other, strict=True):
        tokens += len(targets)
        for number, log_probs in enumerate((p, q)):
            losses[number] -= log_probs.gather(1, targets[:, None]).sum().item()
        divergence += (p.exp() * (p - q)).sum().item()
    perplexities = [math.exp(loss / tokens) for loss in losses]
    return Fidelity(tokens, *perplexities, divergence / tokens)
