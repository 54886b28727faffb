"""A Linear whose weight is stored in fewer bits: the base class of int8.py and nf4.py."""

import functools
import warnings
from abc import ABC, abstractmethod
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from files.errors import UserError
from model.sites import Linear, Site

AT_ONCE = 2**18  # weights that are quantised at once, so that float32 copies stay small
TINY = 1e-38  # divisor in place of a scale of 0, whose weights are all 0


FEW = 8  # rows of x up to which a GPU multiplies by the codes themselves
FUSED_ON = ("cuda",)  # kinds of device


def fused_for(x: Tensor, rows: int = 0) -> ModuleType | None:
    """model/quantize/fused.py where it serves x of so many rows; None: everything is plain."""
    if x.device.type not in FUSED_ON or rows > FEW or torch.compiler.is_compiling():
        return None
    return fused_on(x.device)


@functools.cache
def fused_on(device: torch.device) -> ModuleType | None:
    """The kernels, if they compile and compute right on this device; else a warning says why."""
    try:
        from model.quantize import fused

        with torch.inference_mode(False):
            fused.check(device)
    except Exception as error:  # no triton, no compiler, another torch: of many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        warnings.warn(f"quantised weights are multiplied without triton: {reason}", stacklevel=2)
        return None
    return fused


class QuantizedLinear(Linear, ABC):
    """A frozen Linear with buffers in place of the weight.

    `weight` computes it in the model's dtype, for DoRA, PiSSA and merging.
    """

    def __init__(self, plain: Linear):
        Site.__init__(self, plain.in_features, plain.out_features)
        self.bias = plain.bias
        self.dtype = plain.weight.dtype  # of `weight`
        for leaf, (shape, dtype) in self.layout().items():
            self.register_buffer(leaf, torch.empty(shape, dtype=dtype, device=plain.weight.device))

    @abstractmethod
    def layout(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name of a buffer -> its shape and dtype."""

    def allocate(self, device: torch.device) -> None:
        """Memory for `store`; for the whole model first, so that it is not fragmented."""
        for leaf, (shape, dtype) in self.layout().items():
            setattr(self, leaf, torch.empty(shape, dtype=dtype, device=device))

    @abstractmethod
    def store(self, weight: Tensor) -> None:
        """Quantise weight [out, in], which must be finite, into the buffers."""

    @abstractmethod
    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in]."""

    def multiply(self, x: Tensor) -> Tensor:
        """x [..., in] -> x W^T [..., out], in the dtype of x."""
        return F.linear(x, self.dequantized(x.dtype))

    def multiply_back(self, grad: Tensor) -> Tensor:
        """The gradient of x W^T [..., out] -> that of x [..., in]."""
        return grad @ self.dequantized(grad.dtype)

    @property
    def weight(self) -> Tensor:
        return self.dequantized(self.dtype)

    def put(self, leaf: str, tensor: Tensor) -> None:
        """Set a buffer from a file.

        Raises UserError, whose message lacks the place, for a wrong shape, dtype or value.
        """
        shape, dtype = self.layout()[leaf]
        if tensor.dtype != dtype or tensor.shape != shape:
            raise UserError(
                f"is {list(tensor.shape)} in {tensor.dtype}; this model has {list(shape)} in "
                f"{dtype} there"
            )
        if dtype == torch.float32 and not (tensor.isfinite() & (tensor >= 0)).all():
            raise UserError("holds NaN, infinite or negative values, and is a scale")
        if dtype == torch.int8 and (tensor == -128).any():
            raise UserError("holds the code -128; they are -127 to 127")
        setattr(self, leaf, tensor)

    def check(self) -> None:
        """Raise UserError, whose message lacks the place, for buffers that do not fit together."""

    def product(self, x: Tensor) -> Tensor:
        y = Product.apply(x, self) if torch.is_grad_enabled() else self.multiply(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def product_packed(self, x: Tensor) -> Tensor:
        y = self.multiply_packed(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def multiply_packed(self, x: Tensor) -> Tensor:
        """`multiply` by the packed copy of `matrix`."""
        return self.packed.product(x)

    def sources(self) -> tuple[Tensor, ...]:
        return tuple(self._buffers.values())

    @property
    def packed_dtype(self) -> torch.dtype:
        return self.dtype

    def matrix(self) -> Tensor:
        return self.dequantized(self.dtype)

    def _apply(self, function, recurse: bool = True):
        """model.to(...): the buffers move but keep their dtypes, which `layout` fixes."""
        stored = {id(buffer) for buffer in self._buffers.values()}
        super()._apply(
            lambda t: t.to(function(t.new_empty(0)).device) if id(t) in stored else function(t),
            recurse,
        )
        self.dtype = function(torch.empty(0, dtype=self.dtype)).dtype
        return self


class Product(torch.autograd.Function):
    """x W^T of a quantised Linear. The backward pass needs only its buffers: nothing is saved."""

    @staticmethod
    def forward(ctx, x: Tensor, linear: QuantizedLinear) -> Tensor:
        ctx.linear = linear
        return linear.multiply(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.linear.multiply_back(grad), None
