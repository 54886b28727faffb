"""What all four families share: rotary angles, attention, cache and sizes.

Letters used for shapes everywhere: B batch, T query length, S key length, C hidden size, H heads,
K key/value heads (K <= H), D head size, V vocabulary.
"""

import math
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from files.errors import UserError, unknown
from model.cache import Cache
from model.fast import block_attention
from model.packing import Packing

ACTIVATIONS = {  # by the names of config.json
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


CHUNK = 256  # positions whose logits exist at the same time


@dataclass(frozen=True)
class Kernels:
    """The functions whose memory depends on the device, because its kernels are fused."""

    device: str = "cpu"
    attention: Callable = F.scaled_dot_product_attention
    rms_norm: Callable = F.rms_norm
    dropout: Callable = F.dropout


TORCH = Kernels()
META_KERNELS = ContextVar("META_KERNELS", default=TORCH)  # train/plan counts those of a device


def kernels(x: Tensor) -> Kernels:
    """Torch's own; for a tensor on "meta", those of the device that is planned for."""
    return META_KERNELS.get() if x.is_meta else TORCH


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    return kernels(x).dropout(x, p, training)


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


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, float32: bool = False
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v. q [B, H, T, D]; k, v [B, K, S, D] -> [B, T, H*D].

    mask None: causal. Bool [B, 1, T, S]: True = may look. Float [B, H, T, S]: added to the scores.
    Each query looks at one key at least, and at none after itself. float32: q and k are multiplied
    in float32, as the fused kernels do (float16 may overflow).
    """
    B, H, T, D = q.shape
    device = kernels(q).device if q.is_meta else q.device.type
    if T > 1 and device == "cpu" and q.dtype != torch.float16:
        return block_attention(q, k, v, mask, float32)
    if T == 1 and (device != "cpu" or q.dtype != torch.float16):
        out = attention_of_one(q, k, v, mask)
    elif device == "cpu":
        out = attention_plain(q, k, v, mask, float32)
    else:
        fused = kernels(q).attention
        out = fused(q, k, v, mask, is_causal=mask is None, enable_gqa=k.shape[1] != H)
    return out.transpose(1, 2).reshape(B, T, H * D)


def attention_of_one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """`attention` of one query -> [B, H, 1, D], multiplied in float32: the query heads of one
    key/value head are the queries of the fused kernel, which reads k and v once."""
    B, H, _, D = q.shape
    rows = q.reshape(B, k.shape[1], -1, D)  # [B, K, H / K, D]
    if mask is not None and mask.shape[1] > 1:  # of each head
        mask = mask.reshape(B, k.shape[1], -1, mask.shape[-1])
    fused = kernels(q).attention
    return fused(rows, k, v, mask, is_causal=False, enable_gqa=False).reshape(B, H, 1, D)


def attention_plain(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, float32: bool = False
) -> Tensor:
    """`attention` in plain tensor operations -> [B, H, T, D]; arguments as there.

    The reference for the fused kernels, and faster than them for bf16 on a CPU.
    The query heads of one key/value head are rows of one product.
    """
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    if float32:
        q, k = q.float(), k.float()
    q = q / math.sqrt(D)  # before the product: float16 overflows above 65504
    scores = (q.reshape(B, K, H // K * T, D) @ k.transpose(-1, -2)).view(B, K, H // K, T, S).float()
    if mask is None and T > 1:
        mask = torch.ones(1, 1, T, S, dtype=torch.bool, device=q.device).tril(S - T)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask[:, :, None], torch.finfo(torch.float32).min)
    elif mask is not None:
        scores = scores + mask[:, :, None]
    weights = scores.softmax(dim=-1).to(v.dtype)
    return (weights.view(B, K, H // K * T, S) @ v).view(B, H, T, D)


@dataclass(frozen=True)
class Shape:
    """The sizes of a model under the same names for every family."""

    layers: int
    heads: int
    kv_heads: int  # of keys and values
    head_size: int
    positions: int | None  # tokens it was trained for; None: no number is given
    table: bool = False  # positions are rows of a table: no text can be longer


def check_sizes(config, width: str, heads: str, act: str = "") -> None:
    """Raise UserError if the heads do not divide the width, or the activation is unknown.

    width, heads, act: names of fields of config.
    """
    size, count = getattr(config, width), getattr(config, heads)
    if size % count:
        raise UserError(f"config.json: {width} {size} is not a multiple of {heads} {count}")
    if act and getattr(config, act) not in ACTIVATIONS:
        raise unknown(act, getattr(config, act), ACTIVATIONS)


@dataclass(frozen=True)
class Stage:
    """Blocks first to end - 1 and the device they lie on."""

    device: torch.device
    first: int
    end: int


def moved(x: Tensor, device: torch.device) -> Tensor:
    """x on another device; asynchronous if that is a GPU."""
    return x.to(device, non_blocking=device.type == "cuda")


@dataclass
class Step:
    """What every block needs to know about this forward pass."""

    mask: Tensor | None  # as `attention` takes it
    cache: Cache | None
    cos: Tensor | None = None  # [B, 1, T, D/2], where positions rotate
    sin: Tensor | None = None
    window_mask: Tensor | None = None  # `mask` of layers with a sliding window
    packing: Packing | None = None  # blocks get packed tokens (model/packing.py)
    places: Tensor | None = None  # of the tokens in their prompts, for adapters at a block's output
    copies: dict[torch.device, "Step"] = field(default_factory=dict)  # made by `to`

    def rows(self, x: Tensor) -> Tensor:
        """Keys and values of a block's tokens x, for attention: rows [B, T, C]."""
        return x if self.packing is None else self.packing.unpack(x, self.packing.index)

    def queries(self, x: Tensor) -> Tensor:
        """The same of queries, which are those of `kept` tokens."""
        return x if self.packing is None else self.packing.unpack(x, self.packing.leaving)

    def kept(self, x: Tensor) -> Tensor:
        """Of a block's tokens x those that leave it: in a packed last block not all."""
        return x if self.packing is None else self.packing.keep(x)

    def tokens(self, x: Tensor) -> Tensor:
        """Rows x [B, T, C] -> the tokens that leave the block."""
        return x if self.packing is None else self.packing.pack(x)

    def last(self) -> "Step":
        """What the last block needs to know."""
        if self.packing is None:
            return self
        packing = self.packing.last()
        places = None if self.places is None else packing.keep(self.places)
        return replace(self, packing=packing, places=places)

    def to(self, device: torch.device) -> "Step":
        """A copy on another device, made once; the cache's layers are there already."""
        if device not in self.copies:
            tensors = (self.mask, self.cos, self.sin, self.window_mask, self.places)
            mask, *rest, places = (None if t is None else moved(t, device) for t in tensors)
            packing = self.packing and self.packing.map(lambda index: moved(index, device))
            self.copies[device] = Step(mask, self.cache, *rest, packing, places)
        return self.copies[device]
