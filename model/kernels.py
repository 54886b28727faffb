"""Which kernels compute attention, norms and dropout on a device."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

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

TORCH = Kernels()

META_KERNELS = ContextVar("META_KERNELS", default=TORCH)  # train/plan counts those of a device


def kernels(x: Tensor) -> Kernels:
    """Torch's own; for a tensor on "meta", those of the device that is planned for."""
    return META_KERNELS.get() if x.is_meta else TORCH


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
    device = kernels(q).device if q.is_meta else q.device.type
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
    """`attention` of few queries -> [B, H, T, D], multiplied in float32: those of all query heads
    of one key/value head are the queries of the fused kernel, which reads k and v once.

    mask None: T is 1.
    """
    (B, H, T, D), K = q.shape, k.shape[1]
    rows = q.reshape(B, K, -1, D)  # [B, K, H / K * T, D]
    if mask is not None and mask.shape[1] > 1:  # of each head
        mask = mask.reshape(len(mask), K, -1, mask.shape[-1])
    elif mask is not None and T > 1:
        mask = mask.repeat(1, 1, H // K, 1)
    fused = kernels(q).attention
    return fused(rows, k, v, mask, is_causal=False, enable_gqa=False).reshape(B, H, T, D)
