"""Faster forms of what `model/` writes out plainly, with gradients written by hand.

Each is an autograd Function: it keeps fewer tensors for the backward pass than autograd would, and
makes fewer on the way. The plain form beside it (named in each docstring) is the reference;
tests/model/test_fast.py compares outputs and gradients.

Letters used for shapes: B batch, T query length, S key length, H heads, K key/value heads, D head
size.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

BLOCK = 64  # queries whose scores exist at the same time
KEPT = 256  # keys up to which probabilities are kept for the backward pass, not computed again


class BlockAttention(Function):
    """`attention_plain`, a block of queries at a time -> [B, T, H*D].

    A block reads the keys up to its last query only, which halves the work of causal attention, and
    a block's scores fit the processor's cache. What is kept is linear in T.
    """

    @staticmethod
    def forward(
        ctx, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, float32: bool, training: bool
    ) -> Tensor:
        (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
        out = q.new_empty(B, T, K, H // K, D)
        keys, values = k.reshape(B * K, S, D), v.reshape(B * K, S, D)
        kept = []
        for start in range(0, T, BLOCK):
            end = min(start + BLOCK, T)
            seen = S - T + end  # keys up to the last query of the block
            p = probabilities(q, keys[:, :seen], mask, start, end, float32)
            block = torch.bmm(p.to(v.dtype), values[:, :seen])
            out[:, start:end] = block.view(B, K, H // K, end - start, D).permute(0, 3, 1, 2, 4)
            if training and S <= KEPT:
                kept.append(p)
        if training:
            ctx.save_for_backward(q, k, v, mask, *kept)
            ctx.float32 = float32
        return out.view(B, T, H * D)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, mask, *kept = ctx.saved_tensors
        (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
        scale = 1 / math.sqrt(D)
        gradient = gradient.view(B, T, H, D).transpose(1, 2)
        keys, values = k.reshape(B * K, S, D), v.reshape(B * K, S, D)
        dq = q.new_empty(B, T, K, H // K, D)
        wide = torch.promote_types(q.dtype, torch.float32)  # blocks are added without rounding
        dk, dv = (torch.zeros(B * K, S, D, dtype=wide, device=q.device) for _ in range(2))
        for number, start in enumerate(range(0, T, BLOCK)):
            end = min(start + BLOCK, T)
            seen = S - T + end
            if kept:
                p = kept[number]
            else:
                p = probabilities(q, keys[:, :seen], mask, start, end, ctx.float32)
            g = rows(gradient, K, start, end)
            ds = torch.bmm(g, values[:, :seen].transpose(1, 2)).to(p.dtype)
            torch._softmax_backward_data(ds, p, -1, p.dtype, grad_input=ds)
            dv[:, :seen] += torch.bmm(p.to(v.dtype).transpose(1, 2), g)
            dk[:, :seen] += torch.bmm(ds.transpose(1, 2), rows(q, K, start, end).to(p.dtype))
            block = torch.bmm(ds, keys[:, :seen].to(p.dtype)).mul_(scale)
            dq[:, start:end] = block.view(B, K, H // K, end - start, D).permute(0, 3, 1, 2, 4)
        dq = dq.view(B, T, H, D).transpose(1, 2)
        dk, dv = dk.mul_(scale).to(k.dtype).view_as(k), dv.to(v.dtype).view_as(v)
        return dq, dk, dv, None, None, None


def rows(x: Tensor, K: int, start: int, end: int) -> Tensor:
    """x [B, H, T, D] -> these queries of all heads of a key/value head as rows [B*K, rows, D]."""
    B, H, _, D = x.shape
    return x[:, :, start:end].reshape(B * K, H // K * (end - start), D)


def probabilities(
    q: Tensor, keys: Tensor, mask: Tensor | None, start: int, end: int, float32: bool
) -> Tensor:
    """softmax(q k^T / sqrt(D)) of the queries from start to end -> [B*K, H/K * (end - start), S'].

    q [B, H, T, D], keys [B*K, S', D]: those up to the last of these queries. float32: as
    `attention`; the result is float32 then.
    """
    B, H, _, D = q.shape
    seen, count, K = keys.shape[1], end - start, len(keys) // B
    x = rows(q, K, start, end)
    if float32:
        x, keys = x.float(), keys.float()
    if mask is None:
        bias = x.new_full((count, seen), -math.inf).triu_(1 + seen - count)
    elif mask.dtype == torch.bool:
        looks = mask[:, :, None, start:end, :seen]
        bias = x.new_zeros(looks.shape).masked_fill_(~looks, -math.inf)
    else:
        bias = mask[:, :, start:end, :seen].unflatten(1, (K, -1))
    scores = x.new_empty(B, K, H // K, count, seen).copy_(bias).view(B * K, -1, seen)
    scores.baddbmm_(x, keys.transpose(1, 2), alpha=1 / math.sqrt(D))
    return scores.softmax(dim=-1)


def block_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, float32: bool = False
) -> Tensor:
    """`attention` by `BlockAttention`: nothing is kept where there is no backward pass."""
    training = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    return BlockAttention.apply(q, k, v, mask, float32, training)


class FastRMSNorm(Function):
    """`RMSNorm.compute`; keeps x and 1 / rms(x) of each token."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        inverse = wide.square().mean(dim=-1, keepdim=True).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return times(wide, inverse, x).to(x.dtype).mul_(weight.to(x.dtype))

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        normed = times(x.float(), inverse, x)
        dweight = None
        if ctx.needs_input_grad[1]:
            each = gradient.float() * normed
            dweight = each.sum(dim=tuple(range(x.ndim - 1))).to(weight.dtype)
        g = times(gradient.float(), weight.float(), gradient)
        along = (g * normed).mean(dim=-1, keepdim=True)
        dx = normed.mul_(along).neg_().add_(g).mul_(inverse).to(x.dtype)
        return dx, dweight, None


def times(wide: Tensor, factor: Tensor, x: Tensor) -> Tensor:
    """wide * factor, in place of `wide` where it is not x itself: new memory costs time."""
    return wide * factor if wide is x else wide.mul_(factor)


class SwiGLU(Function):
    """silu(gate) * up; keeps both, and computes silu again in the backward pass."""

    @staticmethod
    def forward(ctx, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        dup = F.silu(gate).mul_(gradient)
        return torch.ops.aten.silu_backward(gradient * up, gate), dup
