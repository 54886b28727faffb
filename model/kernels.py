"""Which kernels compute attention, norms and dropout on a device."""

import math
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model import onednn
from model.fast import block_attention
from model.parts import attention_plain


@dataclass(frozen=True)
class Kernels:
    """The functions whose memory depends on the device, because its kernels are fused."""

    device: str = "cpu"
    attention: Callable = F.scaled_dot_product_attention
    rms_norm: Callable = F.rms_norm
    dropout: Callable = F.dropout


FEW = 9  # queries of a row up to which answers are made by `attention_of_few`
MANY_KEYS = 2048  # of all rows and heads, from which `attention_by_products` is faster (measured)
KEYS = 32  # steps of the number of keys of its products

TORCH = Kernels()

META_KERNELS = ContextVar("META_KERNELS", default=TORCH)  # train/plan counts those of a device


def kernels(x: Tensor) -> Kernels:
    """Torch's own; for a tensor on "meta", those of the device that is planned for."""
    return META_KERNELS.get() if x.is_meta else TORCH


def device_of(x: Tensor) -> str:
    """The kind of device that x is on, or that is planned for."""
    return kernels(x).device if x.is_meta else x.device.type


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    return kernels(x).dropout(x, p, training)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`RMSNorm.compute` in one kernel of a GPU, which computes in float32 and rounds once."""
    return kernels(x).rms_norm(x, (x.shape[-1],), weight.to(x.dtype), eps)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, float32: bool = False
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v. q [B, H, T, D]; k, v [B, K, S, D] -> [B, T, H*D].

    mask None: causal. Bool [B or 1, 1, T, S]: True = may look. Float [B or 1, H, T, S]: added to
    the scores. Each query looks at one key at least, and at none after itself. float32: q and k are
    multiplied in float32, as the fused kernels do (float16 may overflow).
    """
    B, H, T, D = q.shape
    device = device_of(q)
    is_few = T == 1 or (T <= FEW and mask is not None and not torch.is_grad_enabled())
    if is_few and (device != "cpu" or q.dtype != torch.float16):
        out = attention_of_few(q, k, v, mask)
    elif device == "cpu" and q.dtype != torch.float16:
        return block_attention(q, k, v, mask, float32)
    elif device == "cpu":
        out = attention_plain(q, k, v, mask, float32)
    else:
        grouped = k.shape[1] != H
        if grouped and not is_flash(q, mask):  # the other fused kernel has no grouped heads
            k, v = (x.repeat_interleave(H // x.shape[1], dim=1) for x in (k, v))
            grouped = False
        fused = kernels(q).attention
        out = fused(q, k, v, mask, is_causal=mask is None, enable_gqa=grouped)
    return out.transpose(1, 2).reshape(B, T, H * D)


def is_flash(q: Tensor, mask: Tensor | None) -> bool:
    """Whether a GPU computes `attention` of several queries [B, H, T, D] by flash attention."""
    D = q.shape[-1]
    return mask is None and q.dtype != torch.float32 and D <= 256 and D % 8 == 0


def attention_of_few(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`attention` of few queries -> [B, H, T, D]: those of all query heads of one key/value head
    are the queries of one head, so that k and v are read once.

    The fused kernel multiplies in float32. mask None: T is 1.
    """
    if has_fast_products(q, k):
        return attention_by_products(q, k, v, mask)
    (B, H, T, D), K = q.shape, k.shape[1]
    rows = q.reshape(B, K, -1, D)  # [B, K, H / K * T, D]
    if mask is not None and mask.shape[1] > 1:  # of each head
        mask = mask.reshape(len(mask), K, -1, mask.shape[-1])
    elif mask is not None and T > 1:
        mask = mask.repeat(1, 1, H // K, 1)
    fused = kernels(q).attention
    return fused(rows, k, v, mask, is_causal=False, enable_gqa=False).reshape(B, H, T, D)


def has_fast_products(q: Tensor, k: Tensor) -> bool:
    """Whether `attention_by_products` is faster than the fused kernel."""
    return (
        device_of(q) == "cpu"
        and q.dtype == torch.bfloat16
        and k.numel() >= MANY_KEYS * k.shape[-1]
        and not torch.compiler.is_compiling()
        and onednn.is_usable(torch.bfloat16)
    )


def attention_by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`attention_of_few` by two products over all rows and heads, for many keys in bfloat16.

    oneDNN compiles a product for each size, so k and v get zeros up to the next multiple of KEYS.
    It would copy a part of a cache in any case.
    """
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    width = S + -S % KEYS
    keys, values = widened(k, width), widened(v, width)  # [B*K, width, D]
    if mask is None:
        mask = q.new_zeros(1, 1, T, S)
    mask = mask.unflatten(1, (1, 1) if mask.shape[1] == 1 else (K, -1))
    bias = q.new_full((*mask.shape[:-1], width), -math.inf)
    if mask.dtype == torch.bool:
        bias[..., :S].masked_fill_(mask, 0)
    else:
        bias[..., :S] = mask
    scores = q.new_empty(B, K, H // K, T, width).copy_(bias).view(B * K, -1, width)
    scores.baddbmm_(q.reshape(B * K, -1, D), keys.transpose(1, 2), alpha=1 / math.sqrt(D))
    p = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype)
    return torch.bmm(p, values).view(B, H, T, D)


def widened(x: Tensor, keys: int) -> Tensor:
    """x [B, K, S, D] -> [B*K, keys, D], zeros after S: `F.pad` fills all of it first."""
    B, K, S, D = x.shape
    wide = x.new_empty(B, K, keys, D)
    wide[:, :, :S] = x
    wide[:, :, S:] = 0
    return wide.flatten(0, 1)
