"""What the families share because it is the same in all four: rotary angles, attention, cache, tokens and their positions.

Letters used for shapes everywhere: B batch, T query length, S key length, C hidden size, H heads,
K key/value heads (K <= H), D head size, V vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from files.errors import UserError, unknown

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
    """The functions whose memory depends on the device, because its kernels fuse what they do."""

    device: str = "cpu"  # whose kernels they are
    attention: Callable = F.scaled_dot_product_attention
    rms_norm: Callable = F.rms_norm
    dropout: Callable = F.dropout


TORCH = Kernels()
META_KERNELS = ContextVar("META_KERNELS", default=TORCH)  # train/plan counts those of a device


def kernels(x: Tensor) -> Kernels:
    """Torch's own, or for a tensor on "meta" those that it stands for."""
    return META_KERNELS.get() if x.is_meta else TORCH


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    return kernels(x).dropout(x, p, training)


def rotary_angles(
    inv_freq: Tensor, positions: Tensor, dtype: torch.dtype, factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """factor * cos and sin of position x frequency (Su et al. 2021, eq. 15) -> [B, 1, T, D/2].

    inv_freq [D/2] or [B, 1, 1, D/2] and the product are float32 whatever `dtype` is: in bfloat16 positions above 256 would merge.
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

    mask None: causal. Bool [B, 1, T, S]: True = may look. Float [B, H, T, S]: added to the scores. float32: the scores are float32
    from the product on (the fused kernels always do that; half-precision scores may overflow).
    """
    B, H, T, D = q.shape
    device = kernels(q).device if q.is_meta else q.device.type
    if T == 1 or (device == "cpu" and q.dtype != torch.float32):
        out = attention_plain(q, k, v, mask, float32)
    else:
        fused = kernels(q).attention
        out = fused(q, k, v, mask, is_causal=mask is None, enable_gqa=k.shape[1] != H)
    return out.transpose(1, 2).reshape(B, T, H * D)


def attention_plain(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, float32: bool = False
) -> Tensor:
    """The same written out -> [B, H, T, D]. The query heads of one key/value head become rows of one product.

    The reference for the fused kernels, and faster than they are for one query row and for bf16 on a CPU.
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
    """Raise UserError if the heads do not divide the width, or the activation is unknown; all three
    are names of fields."""
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
    """x on another device. A GPU's copy waits in its queue like all of its work; what goes to a CPU is there when this returns."""
    return x.to(device, non_blocking=device.type == "cuda")


class Cache:
    """Keys and values of all layers, room for `length` positions; an argument of the forward pass, never kept on a module."""

    def __init__(
        self,
        shape: Shape,
        batch: int,
        length: int,
        dtype: torch.dtype,
        devices: Sequence[torch.device],
    ):
        """devices: of each layer."""
        size = (batch, shape.kv_heads, length, shape.head_size)
        self.keys = [torch.empty(size, dtype=dtype, device=device) for device in devices]
        self.values = [torch.empty_like(keys) for keys in self.keys]
        self.filled = 0  # positions written so far, the same for every layer between two passes

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Write k, v [B, K, T, D] behind what is there; returns all keys and values so far [B, K, S, D]."""
        end = self.filled + k.shape[2]
        self.keys[layer][:, :, self.filled : end] = k
        self.values[layer][:, :, self.filled : end] = v
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, in this order: numbers int64 [B'], or which to keep, bool [B]."""
        for layer in range(len(self.keys)):
            here = rows.to(self.keys[layer].device)
            self.keys[layer], self.values[layer] = self.keys[layer][here], self.values[layer][here]


@dataclass
class Step:
    """What every block needs to know about this forward pass."""

    mask: Tensor | None  # as `attention` takes it
    cache: Cache | None
    cos: Tensor | None = None  # [B, 1, T, D/2], where positions rotate
    sin: Tensor | None = None
    window_mask: Tensor | None = None  # `mask` of layers with a sliding window
    copies: dict[torch.device, "Step"] = field(default_factory=dict)  # made by `to`

    def to(self, device: torch.device) -> "Step":
        """The same on another device, copied there once; the cache's layers lie there already."""
        if device not in self.copies:
            tensors = (self.mask, self.cos, self.sin, self.window_mask)
            mask, *rest = (None if t is None else moved(t, device) for t in tensors)
            self.copies[device] = Step(mask, self.cache, *rest)
        return self.copies[device]


@dataclass
class Tokens:
    """The tokens of one pass and the keys they may look at, with the virtual ones that adapters put in front of every row.

    Prompt adapters add queries (`prompt` placeholders in front of ids, in a row's first pass), prefix adapters add keys alone.
    """

    ids: Tensor  # [B, T], the first `prompt` of each row are placeholders
    mask: Tensor | None  # [B, past + T], 1 = real token or virtual; None: all are
    given: Tensor | None  # positions that the caller wants for the real tokens
    past: int  # keys in front of the first query: virtual and cached ones
    prompt: int = 0  # virtual tokens in this pass
    virtual: int = 0  # virtual tokens in front of the real ones, in this pass or before

    @property
    def keys(self) -> int:
        """How many keys there are, those of this pass included."""
        return self.past + self.ids.shape[1]

    def positions(self) -> Tensor:
        """Of every key so far [B, past + T]: real tokens are counted from 0, or from behind the virtual ones; a pad has that of the token
        before it, or 0."""
        B, T = self.ids.shape
        if self.given is not None:
            return self.put_behind(
                self.virtual, self.past + T - self.virtual, "all {} tokens so far, cached ones too,"
            )
        if self.mask is None:
            return torch.arange(self.past + T, device=self.ids.device).expand(B, -1)
        return (self.mask.long().cumsum(dim=1) - 1).clamp_(min=0)

    def query_positions(self, limit: int | None = None) -> Tensor:
        """Of the T queries alone [B, T]. Raises UserError for a position that the model's table of `limit` does not have."""
        T = self.ids.shape[1]
        positions = (
            self.positions()[:, -T:]
            if self.given is None
            else self.put_behind(self.prompt, T - self.prompt, "the {} tokens of this pass")
        )
        if limit is not None:
            plain = self.given is None and self.mask is None  # known without a look at the values
            last = self.past + T - 1 if plain else -1 if positions.is_meta else int(positions.max())
            if last >= limit:
                raise UserError(
                    f"position {last} is past the model's last, {limit - 1}: the text is too long for it"
                )
        return positions

    def put_behind(self, virtual: int, real: int, which: str) -> Tensor:
        """The positions given for the `real` tokens, moved behind all virtual ones, and in front of them those of the last `virtual` of these."""
        if self.given.shape[1] != real:
            raise UserError(
                f"the positions of {which.format(real)} are needed; {self.given.shape[1]} are given"
            )
        front = torch.arange(self.virtual - virtual, self.virtual, device=self.ids.device).expand(
            len(self.ids), -1
        )
        return torch.cat((front, self.given + self.virtual), dim=1)

    def may_look(self, window: int | None = None) -> Tensor:
        """Who may look at whom, bool [B or 1, 1, T, past + T]: at real tokens, none of them later,
        and none `window` keys or more before.

        A query always sees itself, so that the rows of pads stay finite.
        """
        T, device = self.ids.shape[1], self.ids.device
        order = torch.ones(1, 1, T, self.past + T, dtype=torch.bool, device=device).tril(self.past)
        if window is not None:
            columns = self.columns()
            order = order & (columns[:, None, None, :] > columns[:, None, -T:, None] - window)
        if self.mask is None:
            return order
        itself = torch.eye(T, self.past + T, dtype=torch.bool, device=device).roll(
            self.past, dims=1
        )
        return (order & self.mask.bool()[:, None, None, :]) | itself

    def columns(self) -> Tensor:
        """Where every key stands in its row, [B or 1, past + T], the virtual ones directly in front
        of the first real one: pads between them take no place in a window."""
        columns = torch.arange(self.keys, device=self.ids.device)[None]
        if self.mask is None or self.virtual == 0:
            return columns
        pads = (self.mask[:, self.virtual :].cumsum(dim=1) == 0).sum(dim=1, keepdim=True)
        return columns + pads * (columns < self.virtual)

    def causal_mask(self) -> Tensor | None:
        """`may_look`, or None where plain causal order says it all: nothing padded, and no keys in front or a single query."""
        if self.mask is None and (self.past == 0 or self.ids.shape[1] == 1):
            return None
        return self.may_look()
