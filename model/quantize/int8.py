"""Weights in 8 bits, a scale for each output (absmax); and the product of integers, where x is rounded as well (Dettmers et al. 2022, LLM.int8).

W[i, j] = scale[i] * codes[i, j]            scale[i] = max_j |W[i, j]| / 127, float32
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.quantize.linear import AT_ONCE, TINY, QuantizedLinear

OUTLIER = 6.0  # entries of x from here on keep their precision (LLM.int8, section 3.2)
FEW = 8  # rows of x up to which torch's own product with int8 codes is the faster one (measured; in bfloat16 alone)


class Int8(QuantizedLinear):
    """scale[out] * codes[out, in]. What is scaled is the product, which is smaller than the weight."""

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
            self.codes[some] = (
                (weight[some].float() / self.scale[some, None].clamp(min=TINY))
                .round()
                .clamp(-127, 127)
                .to(torch.int8)
            )

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return (self.codes * self.scale[:, None]).to(dtype)

    def multiply(self, x: Tensor) -> Tensor:
        y = (
            packed_product(x, self.codes)
            if goes_packed(x)
            else F.linear(x, in_units(self.codes, x.dtype))
        )
        return (y * (self.scale / unit_of(x.dtype))).to(
            x.dtype
        )  # scaled in float32: a scale in 16 bits would be off for all of a row

    def multiply_back(self, grad: Tensor) -> Tensor:
        return (grad * (self.scale / unit_of(grad.dtype))).to(grad.dtype) @ in_units(
            self.codes, grad.dtype
        )


def unit_of(dtype: torch.dtype) -> float:
    """What a code stands for until the scale has come: sums of codes up to 127 would pass 65504, the largest float16."""
    return 1 / 128 if dtype == torch.float16 else 1.0


def in_units(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 codes as floating-point numbers, exactly."""
    return codes.to(dtype) * unit_of(dtype) if dtype == torch.float16 else codes.to(dtype)


def goes_packed(x: Tensor) -> bool:
    """Whether `packed_product` takes the place of the plain one: few rows on a CPU, as in decoding. In float32 torch's is far slower; where 16 does not
    divide the inputs, torch 2.13's reads past their end."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and x.numel() <= FEW * x.shape[-1]
        and x.shape[-1] % 16 == 0
    )


def packed_product(x: Tensor, codes: Tensor) -> Tensor:
    """x [..., in], int8 codes [out, in] -> x codes^T [..., out] without a cast of the codes."""
    return torch._weight_int8pack_mm(
        x.reshape(-1, x.shape[-1]), codes, x.new_ones(len(codes))
    ).view(*x.shape[:-1], len(codes))


class LLMInt8(Int8):
    """Stored as Int8; x is rounded as well, and the product is one of integers.

    Dettmers et al. keep a column of x out of it when any row has an outlier there, so that a row's result depends on its neighbours. Here an entry
    is kept out alone: the same integers, the same high precision for outliers, and each row by itself.
    """

    def multiply(self, x: Tensor) -> Tensor:
        if x.is_meta:  # which columns are multiplied apart is not known without values
            return super().multiply(x)
        rows = x.reshape(-1, x.shape[-1])
        far = rows.abs() >= OUTLIER
        near = rows.masked_fill(far, 0).float()
        step = near.abs().amax(dim=1, keepdim=True) / 127  # [rows, 1]
        codes = (near / step.clamp(min=TINY)).round().to(torch.int8)
        y = integer_product(codes, self.codes) * step * self.scale  # [rows, out], float32
        columns = far.any(dim=0).nonzero()[:, 0]
        if len(columns):
            outliers = torch.where(far, rows, 0)[:, columns].float()  # [rows, columns]
            y += F.linear(outliers, self.codes[:, columns].float()) * self.scale
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)


def integer_product(a: Tensor, b: Tensor) -> Tensor:
    """int8 a [rows, in], b [out, in] -> a b^T [rows, out], exact in int32. On a GPU it needs more than 16 rows, and multiples of 8: zeros fill up."""
    rows, out = len(a), len(b)
    if a.is_cuda:
        inner = -a.shape[1] % 8
        a = F.pad(a, (0, inner, 0, max(24 - rows, -rows % 8)))
        b = (
            F.pad(b, (0, inner, 0, -out % 8)) if inner or out % 8 else b
        )  # padding copies, also where there is nothing to pad
    return torch._int_mm(a, b.T)[:rows, :out]
