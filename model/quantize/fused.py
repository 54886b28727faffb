"""Products with int8 and nf4 codes on a GPU in one kernel of triton: the weight is never made.

    y[m, n] = sum_k x[m, k] W[n, k]       W[n, k] made of codes in registers, sums in float32

For the few rows of a decoding step, where a product is as fast as its bytes are read: 1 or 0.5 a
weight, where `dequantized` reads, writes and reads 5 and more. nf4's weights for many rows are made
by a kernel, too: the bits of `NF4.dequantized`, which launches ten. Triton's interpreter tests all
of it on a CPU; it was never run on a GPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.quantize.int8 import Int8
from model.quantize.nf4 import NF4, levels, nf4_blocks
from model.sites import Linear

OUTS = 4  # of a program
INNER = 512  # of a sum, at a time
AT_ONCE = 32  # blocks of 64 weights of a program that makes them


@triton.jit
def int8_kernel(
    x_ptr, codes_ptr, scale_ptr, y_ptr, rows, outs, inner,
    ROWS: tl.constexpr, OUTS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    m = tl.arange(0, ROWS)
    sums = tl.zeros((ROWS, OUTS), tl.float32)
    for start in range(0, inner, INNER):
        k = start + tl.arange(0, INNER)
        at_x = (m < rows)[:, None] & (k < inner)[None, :]
        at_w = (n < outs)[:, None] & (k < inner)[None, :]
        x = tl.load(x_ptr + m[:, None] * inner + k[None, :], mask=at_x, other=0.0)
        w = tl.load(codes_ptr + n.to(tl.int64)[:, None] * inner + k[None, :], mask=at_w, other=0)
        sums += tl.sum(x.to(tl.float32)[:, None, :] * w.to(tl.float32)[None, :, :], axis=2)
    scale = tl.load(scale_ptr + n, mask=n < outs, other=0.0)
    y = (sums * scale[None, :]).to(y_ptr.dtype.element_ty)
    at_y = (m < rows)[:, None] & (n < outs)[None, :]
    tl.store(y_ptr + m[:, None] * outs + n[None, :], y, mask=at_y)


@triton.jit
def nf4_scale(block, levels_ptr, absmax_ptr, least_ptr, step_ptr, mask):
    """The scales of blocks, in float32, rounded to the dtype of the weights."""
    absmax = tl.load(absmax_ptr + block, mask=mask, other=0).to(tl.float64)
    step = tl.load(step_ptr + block // 256, mask=mask, other=0.0).to(tl.float64)
    least = tl.load(least_ptr + block // 256, mask=mask, other=0.0)
    scale = least * tl.exp(step * absmax).to(tl.float32)
    return scale.to(levels_ptr.dtype.element_ty).to(tl.float32)


@triton.jit
def nf4_weights(codes_ptr, place, scale, levels_ptr, mask):
    """The two weights of each byte of codes, rounded as in `NF4.dequantized`."""
    dtype = levels_ptr.dtype.element_ty
    byte = tl.load(codes_ptr + place, mask=mask, other=0).to(tl.int32)
    first = tl.load(levels_ptr + (byte >> 4), mask=mask, other=0.0).to(tl.float32)
    second = tl.load(levels_ptr + (byte & 15), mask=mask, other=0.0).to(tl.float32)
    return (first * scale).to(dtype), (second * scale).to(dtype)


@triton.jit
def nf4_kernel(
    x_ptr, codes_ptr, absmax_ptr, least_ptr, step_ptr, levels_ptr, y_ptr, rows, outs, inner,
    ROWS: tl.constexpr, OUTS: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    BLOCKS: tl.constexpr = INNER // 64
    n = tl.program_id(0) * OUTS + tl.arange(0, OUTS)
    m = tl.arange(0, ROWS)
    blocks = inner // 64  # of a row of W
    sums = tl.zeros((ROWS, OUTS), tl.float32)
    for start in range(0, blocks, BLOCKS):
        b = start + tl.arange(0, BLOCKS)
        block = n.to(tl.int64)[:, None] * blocks + b[None, :]
        at_b = (n < outs)[:, None] & (b < blocks)[None, :]
        scale = nf4_scale(block, levels_ptr, absmax_ptr, least_ptr, step_ptr, at_b)
        scale = tl.broadcast_to(scale[:, :, None], (OUTS, BLOCKS, 32))
        scale = tl.reshape(scale, (OUTS, BLOCKS * 32))  # of each byte
        k = start * 32 + tl.arange(0, BLOCKS * 32)
        at_x = (m < rows)[:, None] & (k < blocks * 32)[None, :]
        at_w = (n < outs)[:, None] & (k < blocks * 32)[None, :]
        place = n.to(tl.int64)[:, None] * (blocks * 32) + k[None, :]
        even, odd = nf4_weights(codes_ptr, place, scale, levels_ptr, at_w)
        at = x_ptr + m[:, None] * inner + 2 * k[None, :]
        x_even = tl.load(at, mask=at_x, other=0.0).to(tl.float32)
        x_odd = tl.load(at + 1, mask=at_x, other=0.0).to(tl.float32)
        sums += tl.sum(
            x_even[:, None, :] * even.to(tl.float32)[None, :, :]
            + x_odd[:, None, :] * odd.to(tl.float32)[None, :, :],
            axis=2,
        )
    at_y = (m < rows)[:, None] & (n < outs)[None, :]
    tl.store(y_ptr + m[:, None] * outs + n[None, :], sums.to(y_ptr.dtype.element_ty), mask=at_y)


@triton.jit
def nf4_all_kernel(
    codes_ptr, absmax_ptr, least_ptr, step_ptr, levels_ptr, w_ptr, blocks, BLOCKS: tl.constexpr
):
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    at_b = block < blocks
    scale = nf4_scale(block, levels_ptr, absmax_ptr, least_ptr, step_ptr, at_b)
    place = block[:, None] * 32 + tl.arange(0, 32)[None, :]
    mask = tl.broadcast_to(at_b[:, None], (BLOCKS, 32))
    even, odd = nf4_weights(codes_ptr, place, scale[:, None], levels_ptr, mask)
    tl.store(w_ptr + 2 * place, even, mask=mask)
    tl.store(w_ptr + 2 * place + 1, odd, mask=mask)


def sizes(rows: Tensor) -> tuple[int, int, int]:
    """ROWS, OUTS, INNER of a product: as many factors at a time, whatever the rows."""
    padded = triton.next_power_of_2(len(rows))
    return padded, OUTS, INNER // padded


def int8_product(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """x [..., in], int8 codes [out, in], float32 scale [out] -> x W^T [..., out]."""
    outs, inner = codes.shape
    rows = x.reshape(-1, inner).contiguous()
    y = x.new_empty(*x.shape[:-1], outs)
    with torch.cuda.device_of(x):
        int8_kernel[(triton.cdiv(outs, OUTS),)](
            rows, codes, scale, y, len(rows), outs, inner, *sizes(rows)
        )
    return y


def nf4_product(x: Tensor, stored: tuple[Tensor, ...], levels: Tensor, outs: int) -> Tensor:
    """x [..., in] -> x W^T [..., out]; 64 divides in. stored: codes, absmax, least, step of W.

    levels [16]: in the dtype of x.
    """
    inner = x.shape[-1]
    rows = x.reshape(-1, inner).contiguous()
    y = x.new_empty(*x.shape[:-1], outs)
    with torch.cuda.device_of(x):
        nf4_kernel[(triton.cdiv(outs, OUTS),)](
            rows, *stored, levels, y, len(rows), outs, inner, *sizes(rows)
        )
    return y


def nf4_matrix(stored: tuple[Tensor, ...], levels: Tensor) -> Tensor:
    """All weights, flattened, in the dtype of levels [16]."""
    codes = stored[0]
    weights = levels.new_empty(2 * len(codes))
    blocks = len(codes) // 32
    with torch.cuda.device_of(codes):
        nf4_all_kernel[(triton.cdiv(blocks, AT_ONCE),)](*stored, levels, weights, blocks, AT_ONCE)
    return weights


def check(device: torch.device) -> None:
    """Raise RuntimeError where a kernel computes other products on this device than plain ones."""
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(size, generator=generator).to(device) for size in ((3, 192), (37, 192))]
    x, weight = draw
    for kind in (Int8, NF4):
        with torch.device("meta"):
            linear = kind(Linear(192, 37))
        linear.allocate(device)
        linear.store(weight)
        if kind is NF4:
            plain = nf4_blocks(linear.codes, linear.scale(), x.dtype).view(37, 192)
            at = levels(x.dtype, device)
            y = nf4_product(x, linear.sources(), at, 37)
            whole = nf4_matrix(linear.sources(), at).view(37, 192)
        else:
            plain = whole = linear.dequantized(x.dtype)
            y = int8_product(x, linear.codes, linear.scale)
        wanted = x.double() @ plain.double().T
        if not torch.equal(whole, plain) or (y - wanted).abs().max() > 1e-5 * wanted.abs().max():
            raise RuntimeError(f"products of {kind.__name__} differ from plain ones")
