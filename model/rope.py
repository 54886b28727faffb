"""Rotary positions: angles, and the two layouts of the pairs that are turned (Su et al. 2021)."""

import torch
from torch import Tensor

from model.rope_scaling import rope_frequencies


def rope_angles(config, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [B, 1, T, D/2] for positions [B, T], extended as config.rope_scaling says."""
    inv_freq, factor = rope_frequencies(config, positions)
    return rotary_angles(inv_freq, positions, dtype, factor)


def rotary_angles(
    inv_freq: Tensor, positions: Tensor, dtype: torch.dtype, factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """factor * cos and sin of position x frequency (Su et al. 2021, eq. 15) -> [B, 1, T, D/2].

    inv_freq [D/2] or [B, 1, 1, D/2] and the product are float32: bfloat16 cannot tell positions
    above 256 apart.
    """
    angles = positions[:, None, :, None].float() * inv_freq
    return (factor * angles.cos()).to(dtype), (factor * angles.sin()).to(dtype)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2) of x [B, H, T, D]: LLaMA's layout."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the neighbours (2i, 2i + 1) of x [B, H, T, D]: GPT-J's layout."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
