"""What all four families share: attention, sizes, and what a pass tells its blocks.

Letters used for shapes everywhere: B batch, T query length, S key length, C hidden size, H heads,
K key/value heads (K <= H), D head size, V vocabulary.
"""

import math
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from files.errors import UserError, unknown
from model.cache import Cache
from model.packing import Packing
from model.placed import moved

ACTIVATIONS = {  # by the names of config.json
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}

CHUNK = 256  # positions whose logits exist at the same time


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
