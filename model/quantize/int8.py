"""Weights in 8 bits with a scale for each output (absmax); also x in 8 bits (LLM.int8).

LLM.int8: Dettmers et al. 2022.

W[i, j] = scale[i] * codes[i, j]            scale[i] = max_j |W[i, j]| / 127, float32
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from model.quantize.linear import AT_ONCE, TINY, QuantizedLinear, fused_for

OUTLIER = 6.0  # entries of x from here on keep their precision (LLM.int8, section 3.2)
FEW = 8  # rows of x in bfloat16 up to which torch's product with int8 is faster than a cast of it;
# up to half of them it is faster than packed weights (measured)
SCALED = 48  # rows in bfloat16 from which a batch norm scales faster than a product does (measured)


class Int8(QuantizedLinear):
    """W = scale[out] * codes[out, in]. x codes^T is scaled, which is smaller than the weight."""

    def layout(self):
        return {
            "codes": ((self.out_features, self.in_features), torch.int8),
            "scale": ((self.out_features,), torch.float32),
        }

    def store(self, weight: Tensor) -> None:
        low, high = weight.aminmax(dim=1)
        self.scale.copy_(torch.maximum(high, -low).float() / 127)
        rows = max(1, AT_ONCE // self.in_features)
        for start in range(0, self.out_features, rows):
            some = slice(start, start + rows)
            scale = self.scale[some, None].clamp(min=TINY)
            self.codes[some] = (weight[some].float() / scale).round_().clamp_(-127, 127)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return (self.codes * self.scale[:, None]).to(dtype)

    def multiply(self, x: Tensor) -> Tensor:
        if (kernels := fused_for(x, x.numel() // self.in_features)) is not None:
            return kernels.int8_product(x, self.codes, self.scale)
        if packs(x):
            y = packed_product(x, self.codes)
        else:
            y = F.linear(x, in_units(self.codes, x.dtype))
        return scaled(y, self.scale)

    def multiply_back(self, grad: Tensor) -> Tensor:
        return scaled(grad, self.scale) @ in_units(self.codes, grad.dtype)

    def multiply_packed(self, x: Tensor) -> Tensor:
        few = packs(x, FEW // 2)
        return scaled(packed_product(x, self.codes), self.scale) if few else self.packed.product(x)

    def matrix(self) -> Tensor:
        return in_units(self.codes, self.dtype)

    def output_scale(self) -> Tensor:
        return self.scale


def scaled(y: Tensor, scale: Tensor) -> Tensor:
    """y [..., out] * scale [out], multiplied in float32, in the dtype of y, in one pass.

    For many rows on a CPU a batch norm with mean 0 and variance 1 is the fastest way to the same
    numbers.
    """
    if y.dtype == torch.float16:
        scale = scale / unit_of(y.dtype)
    if y.device.type == "cpu" and y.dtype == torch.bfloat16 and y.numel() > SCALED * len(scale):
        zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
        return F.batch_norm(y.flatten(0, -2), zeros, ones, scale, zeros, eps=0).view_as(y)
    return torch.mul(y, scale, out=torch.empty_like(y))


def unit_of(dtype: torch.dtype) -> float:
    """The value of code 1 in a product, before scaling: in float16 sums of codes would overflow."""
    return 1 / 128 if dtype == torch.float16 else 1.0


def in_units(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 codes times `unit_of(dtype)`, exact in dtype."""
    return codes.to(dtype) * unit_of(dtype) if dtype == torch.float16 else codes.to(dtype)


def packs(x: Tensor, few: int = FEW) -> bool:
    """Whether `packed_product` is used: for few rows of bfloat16 on a CPU, as in decoding.

    In float32 it is slower; for inputs that are no multiple of 16 torch 2.13 reads past their end.
    """
    return (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and x.numel() <= few * x.shape[-1]
        and x.shape[-1] % 16 == 0
    )


def packed_product(x: Tensor, codes: Tensor) -> Tensor:
    """x [..., in], int8 codes [out, in] -> x codes^T [..., out] without a cast of the codes."""
    rows, out = x.reshape(-1, x.shape[-1]), len(codes)
    return torch._weight_int8pack_mm(rows, codes, ones(out)).view(*x.shape[:-1], out)


@functools.cache
def ones(count: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.ones(count, dtype=torch.bfloat16)


class LLMInt8(Int8):
    """Stored as Int8; x is rounded to 8 bits, too, and integers are multiplied.

    Dettmers et al. leave a whole column of x unrounded if any row has an outlier in it. Here only
    the outlier is left unrounded, so that a row's result does not depend on the other rows.
    """

    packed_dtype = torch.int8  # no packed copy: integers are multiplied

    def multiply(self, x: Tensor) -> Tensor:
        if x.is_meta:  # the outliers are not known
            return super().multiply(x)
        rows = x.reshape(-1, x.shape[-1])
        far = rows.abs() >= OUTLIER
        near = rows.masked_fill(far, 0).float()
        step = near.abs().amax(dim=1, keepdim=True) / 127  # [rows, 1]
        codes = (near / step.clamp(min=TINY)).round().to(torch.int8)
        y = integer_product(codes, self.codes) * step * self.scale  # [rows, out], float32
        outliers = torch.where(far, rows, 0)
        y += self.times_all(outliers) if x.is_cuda else self.times_some(outliers)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def times_all(self, outliers: Tensor) -> Tensor:
        """Outliers [rows, in], else 0 -> their part of the output, without a wait for the device:
        finding their columns has one."""
        return super().multiply(outliers)

    def times_some(self, outliers: Tensor) -> Tensor:
        """The same in float32, of the columns that have any."""
        columns = outliers.any(dim=0).nonzero()[:, 0]
        some = outliers[:, columns].float()
        return F.linear(some, self.codes[:, columns].float()) * self.scale


def integer_product(a: Tensor, b: Tensor) -> Tensor:
    """int8 a [rows, in], b [out, in] -> a b^T [rows, out], exact in int32.

    On a GPU the sizes are padded with zeros to multiples of 8, and to more than 16 rows.
    """
    rows, out = len(a), len(b)
    if a.is_cuda:
        inner = -a.shape[1] % 8
        a = F.pad(a, (0, inner, 0, max(24 - rows, -rows % 8)))
        if inner or out % 8:  # F.pad copies even if there is nothing to pad
            b = F.pad(b, (0, inner, 0, -out % 8))
    return torch._int_mm(a, b.T)[:rows, :out]
