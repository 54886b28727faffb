"""What the families share because it is mathematically the same: sites, Linear, norm, rotary angles, attention, cache.

Letters used for shapes everywhere: B batch, T query length, S key length, C hidden size, H heads,
K key/value heads (K <= H), D head size, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Site(nn.Module):
    """A place around a computation y = f(x) where adapters may sit; empty, it costs nothing and changes nothing.

    `adapters` owns every adapter loaded here, by name; `active` is the plain tuple of those switched on,
    and its order is the order of application. `model/` knows only the two calls below.
    """

    def __init__(self, in_features: int, out_features: int | None = None):
        super().__init__()
        self.in_features = in_features
        self.out_features = in_features if out_features is None else out_features
        self.adapters = nn.ModuleDict()
        self.active: tuple[nn.Module, ...] = ()

    def before(self, x: Tensor) -> Tensor:
        for adapter in self.active:
            x = adapter.before(x)
        return x

    def after(self, y: Tensor, x: Tensor) -> Tensor:
        for adapter in self.active:
            y = adapter.after(y, x, self)
        return y

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        """The site of a whole sub-layer: y [B, T, C] is what it computed from x [B, T, C]."""
        return self.after(y, x)


class Linear(Site):
    """y = x W^T + b in the dtype of x, and a site. weight [out, in] is stored in any float dtype."""

    def __init__(self, in_features: int, out_features: int, bias: bool = False):
        super().__init__(in_features, out_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return self.after(F.linear(x, self.weight.to(x.dtype), bias), x)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the division in float32 (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps)
        return normed.to(x.dtype) * self.weight.to(x.dtype)


def rotary_angles(inv_freq: Tensor, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin of position x frequency (Su et al. 2021, eq. 15); inv_freq [D/2] float32, positions [B, T] -> [B, 1, T, D/2]."""
    angles = positions[:, None, :, None].float() * inv_freq
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate_halves(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2) of x [B, H, T, D]; LLaMA's layout. GPT-J pairs neighbours instead."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v. q [B, H, T, D]; k, v [B, K, S, D]; mask bool [B, 1, T, S] or None = causal -> [B, T, H*D]."""
    B, H, T, D = q.shape
    if T == 1 or (q.device.type == "cpu" and q.dtype != torch.float32):
        out = attention_plain(q, k, v, mask)
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=k.shape[1] != H)
    return out.transpose(1, 2).reshape(B, T, H * D)


def attention_plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The same written out -> [B, H, T, D]. The query heads of one key/value head become rows of one product.

    The reference for the fused kernels, and faster than they are for one query row and for bf16 on a CPU.
    """
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    scores = (q.reshape(B, K, H // K * T, D) @ k.transpose(-1, -2)).view(B, K, H // K, T, S)
    if mask is None and T > 1:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    elif mask is not None:
        mask = mask[:, :, None]
    scores = scores.float() / math.sqrt(D)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(torch.float32).min)
    weights = scores.softmax(dim=-1).to(v.dtype)
    return (weights.view(B, K, H // K * T, S) @ v).view(B, H, T, D)


class Cache:
    """Keys and values of all layers, room for `length` positions; an argument of the forward pass, never kept on a module."""

    def __init__(self, layers: int, batch: int, kv_heads: int, length: int, head_dim: int, dtype: torch.dtype, device):
        self.keys = torch.empty(layers, batch, kv_heads, length, head_dim, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.filled = 0  # positions already written, the same for every layer between two forward passes

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [B, K, T, D] behind what is there; returns all keys and values so far [B, K, S, D]."""
        end = self.filled + k.shape[2]
        self.keys[layer, :, :, self.filled:end] = k
        self.values[layer, :, :, self.filled:end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


@dataclass
class Step:
    """What every block needs to know about this forward pass."""

    cos: Tensor  # [B, 1, T, D/2]
    sin: Tensor
    mask: Tensor | None  # bool [B, 1, T, S], True = may look; None = causal, nothing padded
    cache: Cache | None


def token_positions(mask: Tensor | None, B: int, T: int, past: int, device) -> Tensor:
    """Position of each of the last T tokens [B, T]: real tokens are counted from 0, pads get 0. mask [B, past + T], 1 = real."""
    if mask is None:
        return torch.arange(past, past + T, device=device).expand(B, T)
    return (mask.long().cumsum(dim=1) - 1).clamp_(min=0)[:, past:]


def causal_mask(mask: Tensor | None, T: int, past: int, device) -> Tensor | None:
    """Who may look at whom, bool [B, 1, T, past + T]; None where plain causal order says it all.

    A query always sees itself, so that the rows of pads stay finite.
    """
    if mask is None and (past == 0 or T == 1):
        return None
    S = past + T
    order = torch.ones(T, S, dtype=torch.bool, device=device).tril(past)
    if mask is None:
        return order[None, None]
    itself = torch.eye(T, S, dtype=torch.bool, device=device).roll(past, dims=1)
    return (order & mask.bool()[:, None, None, :]) | itself
