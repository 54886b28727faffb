"""Frozen Linears whose weight is stored in 8 or 4 bits. A product reads the stored form and leaves nothing behind; the weight exists while it is used.

    int8       W[i, j] = scale[i] * codes[i, j]                            8 bits a weight, a float32 scale for each row (output)
    llm-int8   the same, and x is rounded to 8 bits too, row by row, but for its entries of 6 and more (Dettmers et al. 2022, LLM.int8)
    nf4        W[n] = scale[n // 64] * LEVELS[codes[n]]                    4 bits a weight; 4.13 with the scales (Dettmers et al. 2023, QLoRA)
               scale[b] = mean + step[b // 256] * absmax[b]                double quantisation: absmax in 8 bits

Quantised are the Linears inside the blocks; embeddings, head, norms and biases stay as they are.
"""

import functools
import importlib.util
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.errors import UserError, unknown
from model.sites import Linear, Site

LEVELS = (  # NormalFloat4 (QLoRA, appendix E): quantiles of the normal distribution, scaled to [-1, 1], one of them 0
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
BLOCK = 64  # weights that share a scale, along the flattened weight
GROUP = 256  # blocks whose scales share a step
OUTLIER = 6.0  # entries of x from here on keep their precision (LLM.int8, section 3.2)
FEW = 8  # rows of x up to which torch's own product with int8 codes is the faster one (measured; in bfloat16 alone)
AT_ONCE = GROUP * BLOCK * 64  # weights that are quantised at once, so that float32 copies stay small
TINY = 1e-38  # instead of dividing by a scale of 0: the weights there are 0


class QuantizedLinear(Linear):
    """A frozen Linear with buffers in place of the weight; `weight` makes it, in the model's dtype, for whoever asks (DoRA, PiSSA, merging)."""

    def __init__(self, plain: Linear):
        Site.__init__(self, plain.in_features, plain.out_features)
        self.bias = plain.bias
        self.dtype = plain.weight.dtype  # of the weight that is made
        for leaf, (shape, dtype) in self.layout().items():
            self.register_buffer(leaf, torch.empty(shape, dtype=dtype, device=plain.weight.device))

    def layout(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Name -> shape and dtype of what is stored."""
        raise NotImplementedError

    def store(self, weight: Tensor) -> None:
        """Quantise weight [out, in] on the device it is on. It must be finite."""
        raise NotImplementedError

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """The weight [out, in]."""
        raise NotImplementedError

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
        """Take over what was stored elsewhere. Raises UserError, without the place, for what no weight is stored as."""
        shape, dtype = self.layout()[leaf]
        if tensor.dtype != dtype or tensor.shape != shape:
            raise UserError(f"is {list(tensor.shape)} in {tensor.dtype}; this model has {list(shape)} in {dtype} there")
        if dtype == torch.float32 and not (tensor.isfinite() & (tensor >= 0)).all():
            raise UserError("holds NaN, infinite or negative values, and is a scale")
        if dtype == torch.int8 and (tensor == -128).any():
            raise UserError("holds the code -128; they are -127 to 127")
        setattr(self, leaf, tensor)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        y = Product.apply(x, self)
        return self.after(y if self.bias is None else y + self.bias.to(y.dtype), x)

    def _apply(self, function, recurse: bool = True):
        """model.to(...): the buffers move, and keep their dtypes; a float32 scale cast to 16 bits would be another model."""
        stored = {id(buffer) for buffer in self._buffers.values()}
        super()._apply(lambda t: t.to(function(t.new_empty(0)).device) if id(t) in stored else function(t), recurse)
        self.dtype = function(torch.empty(0, dtype=self.dtype)).dtype
        return self


class Product(torch.autograd.Function):
    """x W^T of a quantised Linear. The backward pass needs its stored form alone, which the module holds anyway: nothing is saved."""

    @staticmethod
    def forward(ctx, x: Tensor, linear: QuantizedLinear) -> Tensor:
        ctx.linear = linear
        return linear.multiply(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.linear.multiply_back(grad), None


class Int8(QuantizedLinear):
    """scale[out] * codes[out, in]. What is scaled is the product, which is smaller than the weight."""

    def layout(self):
        return {"codes": ((self.out_features, self.in_features), torch.int8), "scale": ((self.out_features,), torch.float32)}

    def store(self, weight: Tensor) -> None:
        low, high = weight.aminmax(dim=1)
        self.scale = torch.maximum(high, -low).float() / 127
        self.codes = torch.empty_like(weight, dtype=torch.int8)
        rows = max(1, AT_ONCE // self.in_features)
        for start in range(0, self.out_features, rows):
            some = slice(start, start + rows)
            self.codes[some] = (weight[some].float() / self.scale[some, None].clamp(min=TINY)).round().clamp(-127, 127).to(torch.int8)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return (self.codes * self.scale[:, None]).to(dtype)

    def multiply(self, x: Tensor) -> Tensor:
        y = packed_product(x, self.codes) if goes_packed(x) else F.linear(x, in_units(self.codes, x.dtype))
        return y * (self.scale / unit_of(x.dtype)).to(y.dtype)

    def multiply_back(self, grad: Tensor) -> Tensor:
        return (grad * (self.scale / unit_of(grad.dtype)).to(grad.dtype)) @ in_units(self.codes, grad.dtype)


def unit_of(dtype: torch.dtype) -> float:
    """What a code stands for until the scale has come: sums of codes up to 127 would pass 65504, the largest float16."""
    return 1 / 128 if dtype == torch.float16 else 1.0


def in_units(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """int8 codes as floating-point numbers, exactly."""
    return codes.to(dtype) * unit_of(dtype) if dtype == torch.float16 else codes.to(dtype)


def goes_packed(x: Tensor) -> bool:
    """Whether `packed_product` takes the place of the plain one: few rows on a CPU, as in decoding. In float32 torch's is far slower."""
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and x.numel() <= FEW * x.shape[-1]


def packed_product(x: Tensor, codes: Tensor) -> Tensor:
    """x [..., in], int8 codes [out, in] -> x codes^T [..., out] without a cast of the codes."""
    return torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), codes, x.new_ones(len(codes))).view(*x.shape[:-1], len(codes))


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
        b = F.pad(b, (0, inner, 0, -out % 8))
    return torch._int_mm(a, b.T)[:rows, :out]


class NF4(QuantizedLinear):
    """LEVELS in blocks of 64 along the flattened weight, the last one filled up with zeros; two codes a byte, the first in its upper half."""

    def layout(self):
        blocks = math.ceil(self.out_features * self.in_features / BLOCK)
        return {"codes": ((blocks * BLOCK // 2,), torch.uint8), "absmax": ((blocks,), torch.int8),
                "step": ((math.ceil(blocks / GROUP),), torch.float32), "mean": ((), torch.float32)}

    def store(self, weight: Tensor) -> None:
        flat = weight.flatten()
        blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK) if len(flat) % BLOCK else flat.view(-1, BLOCK)
        low, high = blocks.aminmax(dim=1)
        largest = torch.maximum(high, -low).float()
        self.mean = largest.mean()
        centred = F.pad(largest - self.mean, (0, -len(largest) % GROUP)).view(-1, GROUP)
        self.step = centred.abs().amax(dim=1) / 127
        self.absmax = (centred / self.step[:, None].clamp(min=TINY)).round().clamp(-127, 127).to(torch.int8).flatten()[: len(largest)]
        scale = self.scale().clamp(min=TINY)  # as it will be read: the codes make up for its rounding
        levels = torch.tensor(LEVELS, device=weight.device)
        middles = (levels[1:] + levels[:-1]) / 2
        self.codes = torch.empty(blocks.numel() // 2, dtype=torch.uint8, device=weight.device)
        for start in range(0, len(blocks), AT_ONCE // BLOCK):
            some = slice(start, start + AT_ONCE // BLOCK)
            nearest = torch.bucketize(blocks[some].float() / scale[some, None], middles, out_int32=True).to(torch.uint8).view(-1, 2)
            self.codes[start * BLOCK // 2 : start * BLOCK // 2 + len(nearest)] = nearest[:, 0] << 4 | nearest[:, 1]

    def scale(self) -> Tensor:
        """float32 [blocks]: the largest weight of each block, as it is stored."""
        return (self.mean + self.absmax * self.step.repeat_interleave(GROUP)[: len(self.absmax)]).clamp(min=0)

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        blocks = compiled() if goes_compiled(self.codes) else nf4_blocks
        flat = blocks(self.codes, self.scale(), dtype).flatten()
        return flat[: self.out_features * self.in_features].view(self.out_features, self.in_features)


def nf4_blocks(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Two codes a byte [blocks * 32] and the scale of each block -> weights [blocks, 64]; levels, scales and products rounded to dtype.

    The two weights of a byte are looked up as one word of twice their size: on a CPU seven times faster than one by one.
    """
    levels = torch.tensor(LEVELS, device=codes.device, dtype=dtype)
    pairs = torch.stack((levels.repeat_interleave(16), levels.repeat(16)), dim=1)  # [256, 2]
    words = pairs.view(torch.int64 if dtype == torch.float32 else torch.int32).flatten()  # [256]
    return words.index_select(0, codes.int()).view(dtype).view(-1, BLOCK) * scale.to(dtype)[:, None]


def nf4_blocks_in_one(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The same in the form that torch.compile turns into one kernel."""
    levels = torch.tensor(LEVELS, device=codes.device, dtype=dtype)
    return levels[torch.stack((codes >> 4, codes & 15), dim=1).int()].view(-1, BLOCK) * scale.to(dtype)[:, None]


def goes_compiled(codes: Tensor) -> bool:
    """Whether `compiled` takes the place of the plain form: on GPUs, where torch's compiler has what it needs."""
    return codes.is_cuda and importlib.util.find_spec("triton") is not None


@functools.cache
def compiled() -> Callable:
    """`nf4_blocks` for GPUs, compiled once for all shapes."""
    return torch.compile(nf4_blocks_in_one, dynamic=True)


STORED_AS = {"int8": Int8, "llm-int8": LLMInt8, "nf4": NF4}


METHOD = "llm-adapters"  # in the quantization_config of config.json: stored as here


def quantization_of(raw: dict, where: str) -> tuple[str, str]:
    """(how the weights are stored, fingerprint of those they were made from) from the fields of a config.json; two empty texts of plain weights.

    Raises UserError for another program's quantisation.
    """
    said = raw.get("quantization_config")
    if said is None:
        return "", ""
    method = said.get("quant_method") if isinstance(said, dict) else said
    if method != METHOD:
        raise UserError(f"{where}: quantization_config is that of {method!r:.60}, whose weights are not read here: "
                        "give the model as it was before, and quantize=\"nf4\" or \"int8\"")
    how, fingerprint = said.get("how"), said.get("fingerprint")
    if how not in STORED_AS or not isinstance(fingerprint, str) or not fingerprint or said.keys() - {"quant_method", "how", "fingerprint"}:
        raise UserError(f"{where}: quantization_config should hold how ({', '.join(STORED_AS)}), fingerprint and quant_method alone: {said!r:.200}")
    return how, fingerprint


def quantize_skeleton(model: nn.Module, how: str) -> None:
    """Turn the Linears inside the blocks of a model on the meta device into quantised ones without values.

    Raises UserError for an unknown name.
    """
    if how not in STORED_AS:
        raise unknown("quantization", how, STORED_AS)
    for path, linear in [(path, module) for path, module in model.named_modules() if type(module) is Linear and path.startswith(model.blocks_at + ".")]:
        model.set_submodule(path, STORED_AS[how](linear))
    model.quantize = how


def quantized(model: nn.Module) -> dict[str, QuantizedLinear]:
    """The quantised Linears by their path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, QuantizedLinear)}


def quantized_weights(module: nn.Module) -> int:
    """How many weights are stored quantised: no parameters to torch, and parameters of the model all the same."""
    return sum(one.in_features * one.out_features for one in module.modules() if isinstance(one, QuantizedLinear))
