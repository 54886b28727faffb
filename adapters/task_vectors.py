"""Sums of task vectors that keep them from cancelling each other.

A task vector is what training changed: τ = θ - start, of one parameter. With weights w₁ ... wₙ:

    ties   keep the largest share of each τ; take each entry's sign from Σ τ; mean of w τ over
           those that have this sign (Yadav et al. 2023, arXiv 2306.01708, section 4)
    dare   drop entries of each τ at random, divide the rest by the share that is kept; Σ w τ
           (Yu et al. 2023, arXiv 2311.03099, eq. 3)

`density` is the share of entries that is kept, in (0, 1].
"""

import torch
from torch import Tensor


def ties(vectors: list[Tensor], weights: list[float], density: float) -> Tensor:
    """Trimmed, signs elected, mean over those that agree: n tensors of one shape -> that shape."""
    trimmed = torch.stack([keep_largest(vector, density) for vector in vectors])
    elected = torch.where(trimmed.sum(dim=0) >= 0, 1, -1)
    agree = trimmed.sign() == elected
    return (weighted(trimmed, weights) * agree).sum(dim=0) / agree.sum(dim=0).clamp(min=1)


def dare(
    vectors: list[Tensor], weights: list[float], density: float, generator: torch.Generator
) -> Tensor:
    """Entries dropped at random and the rest scaled up: n tensors of one shape -> that shape."""
    kept = [
        vector * torch.bernoulli(torch.full_like(vector, density), generator=generator) / density
        for vector in vectors
    ]
    return weighted(torch.stack(kept), weights).sum(dim=0)


def keep_largest(vector: Tensor, density: float) -> Tensor:
    """The share `density` of entries with the largest absolute values; zeros elsewhere."""
    flat = vector.flatten()
    kept = flat.abs().topk(int(density * flat.numel())).indices
    return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view_as(vector)


def weighted(stacked: Tensor, weights: list[float]) -> Tensor:
    """weights[i] x stacked[i] of a tensor [n, ...]."""
    return stacked * stacked.new_tensor(weights).view(-1, *[1] * (stacked.dim() - 1))


def truncate(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of B A by a product of rank at most `rank` (Eckart and Young 1936).

    A [R, in] and B [out, R] -> [r, in] and [out, r]. The singular value decomposition is that of an
    [R, R] matrix, between the orthogonal factors of B and A.
    """
    left, inner_left = torch.linalg.qr(B)
    right, inner_right = torch.linalg.qr(A.T)
    U, S, Vh = torch.linalg.svd(inner_left @ inner_right.T, full_matrices=False)
    return Vh[:rank] @ right.T, left @ (U[:, :rank] * S[:rank])
