"""A Linear's copy of its weight in another layout, for answers on a CPU (model/packed.py)."""

import torch
from torch import Tensor, nn


class Packable(nn.Module):
    """What a Linear does with the copy, if it has one: `packed`."""

    packed = None
    weight: nn.Parameter
    bias: nn.Parameter | None

    def is_packed_for(self, x: Tensor) -> bool:
        """Whether the product with x is the copy's to compute."""
        copy = self.packed
        return copy is not None and copy.serves(x) and copy.is_current(self)

    def product_packed(self, x: Tensor) -> Tensor:
        """`product` by the packed copy."""
        return self.packed.product(x, None if self.bias is None else self.bias.to(x.dtype))

    def sources(self) -> tuple[Tensor, ...]:
        """The tensors that the matrix is made of."""
        return (self.weight,)

    @property
    def packed_dtype(self) -> torch.dtype:
        return self.weight.dtype

    def matrix(self) -> Tensor:
        """[out, in] in `packed_dtype`: what is packed."""
        return self.weight

    def output_scale(self) -> Tensor | None:
        """[out], by which a product by `matrix` is multiplied; None: by nothing."""
        return None

    def train(self, mode: bool = True) -> "Packable":
        if mode:
            self.packed = None  # training needs the memory
        return super().train(mode)

    def _apply(self, function, recurse: bool = True) -> "Packable":
        self.packed = None  # model.to(...)
        return super()._apply(function, recurse)
