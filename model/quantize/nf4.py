"""Weights in 4 bits: 16 levels, an 8-bit scale for 64 weights (Dettmers et al. 2023, QLoRA).

    W[n] = scale[n // 64] * LEVELS[codes[n]]            n counts along the flattened weight
    scale[b] = least[g] * exp(step[g] * absmax[b])      g = b // 256

Bits a weight with this double quantisation: 4 + 8 / 64 + 64 / (64 * 256) = 4.13.

absmax counts equal steps of the logarithm, from the smallest scale of 256 blocks to the largest.
The paper has 8-bit floats around a mean: one block with a large weight makes all 256 coarse.
"""

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from files.errors import UserError
from model.quantize.linear import AT_ONCE, TINY, QuantizedLinear, fused_for

LEVELS = (  # NormalFloat4 (QLoRA, appendix E): quantiles of N(0, 1), scaled to [-1, 1], and 0
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
BLOCK = 64  # weights that share a scale, along the flattened weight
GROUP = 256  # blocks whose scales share a step


class NF4(QuantizedLinear):
    """Blocks of 64 along the flattened weight, the last one padded with zeros.

    Two codes a byte, the first in its upper half.
    """

    def layout(self):
        blocks = math.ceil(self.out_features * self.in_features / BLOCK)
        groups = math.ceil(blocks / GROUP)
        return {
            "codes": ((blocks * BLOCK // 2,), torch.uint8),
            "absmax": ((blocks,), torch.uint8),
            "least": ((groups,), torch.float32),
            "step": ((groups,), torch.float32),
        }

    def store(self, weight: Tensor) -> None:
        flat = weight.flatten()
        if len(flat) % BLOCK:  # F.pad copies even if there is nothing to pad
            flat = F.pad(flat, (0, -len(flat) % BLOCK))
        blocks = flat.view(-1, BLOCK)
        low, high = blocks.aminmax(dim=1)
        self.store_scales(torch.maximum(high, -low).float())
        scale = self.scale().clamp(min=TINY)  # as it is rounded, so that the codes fit it
        at = levels(torch.float32, weight.device)
        middles = (at[1:] + at[:-1]) / 2
        for start in range(0, len(blocks), AT_ONCE // BLOCK):
            some = slice(start, start + AT_ONCE // BLOCK)
            step = scale[some, None]
            codes = torch.bucketize(blocks[some].float() / step, middles, out_int32=True)
            codes = codes.to(torch.uint8).view(-1, 2)
            first = start * BLOCK // 2
            self.codes[first : first + len(codes)] = codes[:, 0] << 4 | codes[:, 1]

    def store_scales(self, largest: Tensor) -> None:
        """Store the largest weight of each block [blocks], none below 0."""
        groups = F.pad(largest, (0, -len(largest) % GROUP)).view(-1, GROUP)
        top = groups.amax(dim=1).clamp(min=TINY)
        least = groups.masked_fill(groups == 0, torch.inf).amin(dim=1).minimum(top)
        self.least.copy_(least)
        # logarithms and powers in float64, rounded: the same on every device
        self.step.copy_((top / least).double().log() / 255)
        ratio = (groups / least[:, None]).clamp(min=1).double()
        steps = ratio.log_().div_(self.step[:, None].clamp(min=TINY))
        self.absmax.copy_(steps.round_().clamp_(0, 255).flatten()[: len(largest)])

    def scale(self) -> Tensor:
        """float32 [blocks]: the largest weight of each block, as it is stored."""
        blocks = len(self.absmax)
        counts = F.pad(self.absmax, (0, -blocks % GROUP)).view(-1, GROUP)
        powers = (self.step.double()[:, None] * counts).exp_().float()
        return (self.least[:, None] * powers).flatten()[:blocks]

    def check(self) -> None:
        if not self.scale().isfinite().all():
            raise UserError("holds scales that are not finite")

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        if (kernels := fused_for(self.codes)) is not None:
            flat = kernels.nf4_matrix(self.sources(), levels(dtype, self.codes.device))
        else:
            flat = nf4_blocks(self.codes, self.scale(), dtype).flatten()
        out, inner = self.out_features, self.in_features
        return flat[: out * inner].view(out, inner)

    def multiply(self, x: Tensor) -> Tensor:
        kernels = fused_for(x, x.numel() // self.in_features)
        if kernels is None or self.in_features % BLOCK:
            return super().multiply(x)
        at = levels(x.dtype, x.device)
        return kernels.nf4_product(x, self.sources(), at, self.out_features)


def nf4_blocks(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """codes [blocks * 32], two a byte, and scale [blocks] -> weights [blocks, 64] in dtype.

    Levels and scales are rounded to dtype first. The four levels of two bytes are looked up as one
    word: ten times faster on a CPU than one by one, and three kernels on a GPU.
    """
    words = four_levels(dtype, codes.device).index_select(0, codes.view(torch.uint16).int())
    return words.view(dtype).view(-1, BLOCK).mul_(scale.to(dtype)[:, None])


@functools.cache
def levels(dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(LEVELS, dtype=dtype, device=device)


@functools.cache
def four_levels(dtype: torch.dtype, device: torch.device) -> Tensor:
    """[65536] words of four levels in dtype, for two bytes read as one number, the first below."""
    with torch.inference_mode(False):
        one = torch.tensor(LEVELS, dtype=dtype)
        pairs = torch.stack((one.repeat_interleave(16), one.repeat(16)), dim=1)  # [256, 2]
        words = torch.cat((pairs.repeat(256, 1), pairs.repeat_interleave(256, dim=0)), dim=1)
        word = torch.complex128 if dtype == torch.float32 else torch.int64
        return words.view(word).flatten().to(device)
