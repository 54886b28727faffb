"""What the families share because it is the same in all four: sites, Linear, norms, rotary angles, attention, cache, masks.

Letters used for shapes everywhere: B batch, T query length, S key length, C hidden size, H heads,
K key/value heads (K <= H), D head size, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.errors import UserError

ACTIVATIONS = {  # by the names of config.json
    "relu": F.relu, "silu": F.silu, "swish": F.silu, "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"), "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


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


class Embedding(nn.Module):
    """Row i of weight [rows, size] for the integer i. (torch's own starts with random numbers, and its import for that takes seconds.)"""

    def __init__(self, rows: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, size))

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, the division in float32 (Zhang & Sennrich 2019, eq. 4)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps)
        return normed.to(x.dtype) * self.weight.to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / std * weight + bias (Ba et al. 2016, eq. 4), computed in float32; affine=False has neither weight nor bias."""

    def __init__(self, size: int, eps: float = 1e-5, affine: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size)) if affine else None
        self.bias = nn.Parameter(torch.empty(size)) if affine else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = (None, None) if self.weight is None else (self.weight.to(x.dtype), self.bias.to(x.dtype))
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)


def rotary_angles(inv_freq: Tensor, positions: Tensor, dtype: torch.dtype, factor: float = 1.0) -> tuple[Tensor, Tensor]:
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


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, float32: bool = False) -> Tensor:
    """softmax(q k^T / sqrt(D)) v. q [B, H, T, D]; k, v [B, K, S, D] -> [B, T, H*D].

    mask None: causal. Bool [B, 1, T, S]: True = may look. Float [B, H, T, S]: added to the scores. float32: the scores are float32
    from the product on (the fused kernels always do that; half-precision scores may overflow).
    """
    B, H, T, D = q.shape
    if T == 1 or (q.device.type == "cpu" and q.dtype != torch.float32):
        out = attention_plain(q, k, v, mask, float32)
    else:
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=k.shape[1] != H)
    return out.transpose(1, 2).reshape(B, T, H * D)


def attention_plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, float32: bool = False) -> Tensor:
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

    mask: Tensor | None  # as `attention` takes it
    cache: Cache | None
    cos: Tensor | None = None  # [B, 1, T, D/2], where positions rotate
    sin: Tensor | None = None


def token_positions(ids: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
    """Position of every token so far [B, past + T]: real tokens are counted from 0, a pad has that of the token before it, or 0.

    ids [B, T]; mask [B, past + T], 1 = real token, None = all are; past is what the cache holds.
    """
    B, T = ids.shape
    if mask is None:
        return torch.arange((cache.filled if cache else 0) + T, device=ids.device).expand(B, -1)
    return (mask.long().cumsum(dim=1) - 1).clamp_(min=0)


def query_positions(ids: Tensor, mask: Tensor | None, cache: Cache | None, given: Tensor | None, limit: int | None = None) -> Tensor:
    """`given`, or those of the last T tokens [B, T]. Raises UserError for a position that the model's table of `limit` does not have."""
    positions = token_positions(ids, mask, cache)[:, -ids.shape[1] :] if given is None else given
    if limit is not None and int(positions.max()) >= limit:
        raise UserError(f"position {int(positions.max())} is past the model's last, {limit - 1}: the text is too long for it")
    return positions


def may_look(ids: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
    """Who may look at whom, bool [B or 1, 1, T, past + T]: at real tokens, none of them later.

    A query always sees itself, so that the rows of pads stay finite.
    """
    T, past = ids.shape[1], cache.filled if cache else 0
    order = torch.ones(1, 1, T, past + T, dtype=torch.bool, device=ids.device).tril(past)
    if mask is None:
        return order
    itself = torch.eye(T, past + T, dtype=torch.bool, device=ids.device).roll(past, dims=1)
    return (order & mask.bool()[:, None, None, :]) | itself


def causal_mask(ids: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor | None:
    """`may_look`, or None where plain causal order says it all: nothing padded, and nothing cached or a single query."""
    if mask is None and (cache is None or cache.filled == 0 or ids.shape[1] == 1):
        return None
    return may_look(ids, mask, cache)


class LanguageModel(nn.Module):
    """The machinery around the blocks, the same for every family; the family's own Model is the computation.

    It brings `lm_head`, and `hidden(ids, mask, positions, cache)` -> last hidden states [B, T, C].
    """

    family: str
    sites: dict[str, str]  # the paper's place -> attribute of a block
    picture: str
    blocks_at: str  # where in the model they are
    embedding_at: str

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.checkpointing = False  # True: keep only each block's input for the backward pass and compute the rest again
        self.dtype = torch.float32  # of the computation

    @property
    def blocks(self) -> nn.ModuleList:
        return self.get_submodule(self.blocks_at)

    @property
    def input_embedding(self) -> Embedding:
        return self.get_submodule(self.embedding_at)

    def tie(self) -> None:
        """Let the output head use the embedding's weight."""
        self.lm_head.weight = self.input_embedding.weight

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of at most `length` tokens."""
        c = self.config
        return Cache(len(self.blocks), batch, c.kv_heads, length, c.head_size, self.dtype, self.input_embedding.weight.device)

    def run(self, x: Tensor, step: Step) -> Tensor:
        """x [B, T, C] through all blocks."""
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, step, use_reentrant=False)
            else:
                x = block(x, step)
        if step.cache is not None:
            step.cache.filled += x.shape[1]
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., C] -> float32 logits [..., V]."""
        return self.lm_head(hidden).float()

    def forward(self, ids: Tensor, mask: Tensor | None = None, positions: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """ids int64 [B, T], mask 1 = real token [B, past + T] -> logits [B, T, V].

        With a cache that holds `past` positions, ids are the tokens behind them. positions [B, T] (BLOOM: of all keys, [B, past + T])
        default to `token_positions`. Raises UserError for a position the model has not.
        """
        return self.logits(self.hidden(ids, mask, positions, cache))
