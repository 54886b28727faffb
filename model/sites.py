"""Sites of adapters: layers with weights, whole sub-layers, keys and values.

Letters used for shapes: B batch, T query length, S key length, C hidden size, K key/value heads,
D head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.cache import Cache
from model.fast import FastRMSNorm
from model.kernels import kernels, rms_norm
from model.onednn import linear
from model.packable import Packable


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a model without its adapters', by name; shared ones once."""
    return {
        name: parameter for name, parameter in model.named_parameters() if ".adapters." not in name
    }


class Site(nn.Module):
    """A computation y = f(x) that adapters can change; without adapters it is y itself.

    `adapters` owns every adapter loaded here, by name; `active` is a tuple of those switched on, in
    the order of application. `model/` knows only their hooks: before, after, kv, embed, unembed.
    """

    kind = "sub-layer"  # of place: what adapters can do here

    def __init__(self, in_features: int, out_features: int | None = None):
        super().__init__()
        self.in_features = in_features
        self.out_features = in_features if out_features is None else out_features
        self.adapters = nn.ModuleDict()
        self.active: tuple = ()

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


class Linear(Packable, Site):
    """y = x W^T + b in the dtype of x; a site. weight [out, in] has any float dtype."""

    kind = "Linear"

    def __init__(self, in_features: int, out_features: int, bias: bool = False):
        super().__init__(in_features, out_features)
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.after(self.product_packed(x) if self.is_packed_for(x) else self.product(x), x)

    def product(self, x: Tensor) -> Tensor:
        return self.compute(x, self.weight, self.bias)


class Embedding(Site):
    """Ids -> rows of weight [rows, size]; the site of a model's input.

    torch.nn.Embedding starts with random numbers, whose import takes seconds.
    """

    kind = "embedding"

    def __init__(self, rows: int, size: int):
        super().__init__(rows, size)
        self.weight = nn.Parameter(torch.empty(rows, size))
        self.bias = None

    def compute(self, ids: Tensor, weight: Tensor, bias: None = None) -> Tensor:
        return F.embedding(ids, weight)

    def forward(self, ids: Tensor) -> Tensor:
        return self.after(self.compute(ids, self.weight), ids)


class RMSNorm(Site):
    """x / rms(x) * weight, the division in float32 (Zhang & Sennrich 2019, eq. 4); a site."""

    kind = "norm"

    def __init__(self, size: int, eps: float):
        super().__init__(size)
        self.weight = nn.Parameter(torch.empty(size))
        self.bias = None
        self.eps = eps

    def compute(self, x: Tensor, weight: Tensor, bias: None = None) -> Tensor:
        device = kernels(x).device if x.is_meta else x.device.type
        if device != "cpu":
            return rms_norm(x, weight, self.eps)
        if torch.is_grad_enabled():
            return FastRMSNorm.apply(x, weight, self.eps)
        normed = kernels(x).rms_norm(x.float(), (x.shape[-1],), eps=self.eps)
        return normed.to(x.dtype) * weight.to(x.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.compute(x, self.weight), x)


class LayerNorm(Site):
    """(x - mean) / std * weight + bias, computed in float32 (Ba et al. 2016, eq. 4); a site.

    affine=False has neither weight nor bias.
    """

    kind = "norm"

    def __init__(self, size: int, eps: float = 1e-5, affine: bool = True):
        super().__init__(size)
        self.weight = nn.Parameter(torch.empty(size)) if affine else None
        self.bias = nn.Parameter(torch.empty(size)) if affine else None
        self.eps = eps

    def compute(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        weight, bias = (None if t is None else t.to(x.dtype) for t in (weight, bias))
        return F.layer_norm(x, x.shape[-1:], weight, bias, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.compute(x, self.weight, self.bias), x)


class BlockOutput(Site):
    """The site of what leaves a block: adapters there know where tokens stand in their prompts."""

    kind = "block"

    def forward(self, y: Tensor, places: Tensor | None) -> Tensor:
        """y [B, T, C]; places int64 [B, T, 2] (Tokens.places), None: no token is a prompt's."""
        return y if places is None else self.after(y, places)


class KeysValues(Site):
    """The site of a layer's keys and values: prefix tuning puts further ones in front.

    Its features are K * D.
    """

    kind = "keys and values"

    def __init__(self, kv_heads: int, head_dim: int):
        super().__init__(kv_heads * head_dim)
        self.kv_heads, self.head_dim = kv_heads, head_dim

    @property
    def virtual(self) -> int:
        """How many keys the active adapters put in front."""
        return sum(adapter.virtual for adapter in self.active)

    def forward(
        self, k: Tensor, v: Tensor, mask: Tensor | None, cache: Cache | None, layer: int
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """New k, v [B, K, T, D] of a layer -> all [B, K, S, D], the virtual ones in front, then
        those in the cache, which keeps the new ones and in the first pass the virtual ones too.

        mask: has columns for the most virtual keys of any layer; returned with this layer's.
        """
        if cache is None or cache.is_empty:
            for adapter in self.active:
                k, v = adapter.kv(k, v)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        if mask is not None:
            mask = mask[..., -k.shape[2] :]
        return k, v, mask if cache is None else cache.hide(layer, mask)
