"""What `merge` folds adapters into: a site's weight and bias, one adapter after the other."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from files.errors import UserError
from model.sites import Site


@dataclass(frozen=True)
class Folded:
    """What a site computes with the adapters folded so far: y = weight (x M₁ M₂ ...) + bias.

    weight [out, in] and bias [out] are float32, or None. Each of `inputs` is a matrix M [in, in]
    that changes x, as a function weight -> weight Mᵀ. They stand apart because adapters that read x
    (LoRA) get it changed, too.
    """

    site: Site
    base: tuple[Tensor | None, Tensor | None]  # weight and bias before any adapter
    weight: Tensor | None
    bias: Tensor | None
    inputs: tuple[Callable[[Tensor], Tensor], ...] = ()

    def through(self, weight: Tensor) -> Tensor:
        """weight ... M₂ᵀ M₁ᵀ"""
        for change in reversed(self.inputs):
            weight = change(weight)
        return weight

    def check_base(self, adapter: nn.Module, *leaves: str) -> None:
        """Raises UserError if one of "weight" and "bias" is no longer the base's."""
        for leaf, base in zip(("weight", "bias"), self.base, strict=True):
            if leaf in leaves and getattr(self, leaf) is not base:
                raise UserError(
                    f"{type(adapter).__name__} starts from the base's {leaf}, which another "
                    "adapter in front of it has changed; apply it first"
                )
