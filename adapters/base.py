"""What an adapter is: a small module at a site, with a few hooks that do nothing unless a method overrides them."""

import torch.nn.functional as F
from torch import Tensor, nn

from model.errors import UserError


class Adapter(nn.Module):
    """Base of all methods. A site calls `before` on what goes into its computation f and `after` on what comes out.

    A method is a subclass with a frozen dataclass `Options` (its settings, with defaults) and `__init__(options, site)`.
    Its parameters are float32 masters; `linear` casts them to the computation's dtype, the one place that does.
    """

    linear_only = False  # True: needs the weight of a Linear, so whole sub-layers are no place for it

    def before(self, x: Tensor) -> Tensor:
        """What f shall see instead of x [B, T, in]."""
        return x

    def after(self, y: Tensor, x: Tensor, f: nn.Module) -> Tensor:
        """What the model shall see instead of y = f(x) [B, T, out]."""
        return y

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The float32 weight [out, in] and bias [out] of a plain Linear that computes the same. Raises UserError where there is none."""
        raise UserError(f"{type(self).__name__} is not linear and cannot be merged into the weights; evaluate and generate use it unmerged")

    @staticmethod
    def linear(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x, weight.to(x.dtype))
