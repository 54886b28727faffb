"""Products by oneDNN, where a CPU makes them faster than torch's own; `F.linear` is the plain form.

torch multiplies float32 by MKL, which uses 256 of the 512 bits of a register on AMD's processors.
oneDNN uses all, and can keep a weight in a layout of its own. Its functions are private to torch:
they are tried once (`is_usable`), and where they are missing or wrong everything is plain.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

ROWS = 16  # that a layout is made for; it serves any number
FLOAT32_FROM = 2**19  # multiplications from which oneDNN is faster than torch in float32 (measured)


def lay_out(weight: Tensor) -> Tensor:
    """A weight [out, in] in oneDNN's layout, for any number of rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] W^T + bias [out]; weight [out, in] plain, transposed or laid out."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] W^T + bias [..., out], with gradients."""
    if not is_faster(x, weight):
        return F.linear(x, weight, bias)
    product = Product.apply if torch.is_grad_enabled() else multiply
    return product(x, weight, bias)


class Product(Function):
    """`F.linear` in float32; dx = dy W, dW = dy^T x, db = sum of dy over the rows."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rows = dy.flatten(0, -2)
        dx = multiply(dy, weight.t()) if needs_x else None
        dweight = None
        if needs_weight:
            inputs = x.flatten(0, -2)
            if len(weight) <= inputs.shape[1]:  # the fewer rows, the faster
                dweight = multiply(rows.t(), inputs.t())
            else:
                dweight = multiply(inputs.t(), rows.t()).t()
        return dx, dweight, rows.sum(dim=0) if needs_bias else None


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN multiplies x [..., in] by a plain weight [out, in] faster than torch."""
    return (
        x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
        and x.numel() * len(weight) >= FLOAT32_FROM
        and is_faster_here()
        and not torch.compiler.is_compiling()
    )


@functools.cache
def is_faster_here() -> bool:
    """Whether plain float32 weights are multiplied by oneDNN on this processor: one that does not
    depend on a clock, so that a run repeats to the bit."""
    features = getattr(torch.cpu, "get_capabilities", dict)()
    is_amd = "AMD" in features.get("cpu_name", "")
    return is_amd and features.get("avx512_f", False) and is_usable(torch.float32)


@functools.cache
def is_usable(dtype: torch.dtype) -> bool:
    """Whether this torch has the functions, and they multiply right in dtype."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(size, generator=generator).to(dtype) for size in ((20, 70), (50, 70), (50,))
    )
    try:
        forms = weight, lay_out(weight), weight.t().contiguous().t()
        pairs = [
            (multiply(rows, form, added), F.linear(rows.float(), weight.float(), wide))
            for form in forms
            for rows in (x, x[:1])
            for added, wide in ((None, None), (bias, bias.float()))
        ]
    except (AttributeError, RuntimeError, TypeError):  # another torch, or a CPU without it
        return False
    error = 1e-6 if dtype == torch.float32 else 4e-3
    return all(
        found.shape == wanted.shape
        and found.dtype == dtype
        and (found.float() - wanted).abs().max() <= error * wanted.abs().max()
        for found, wanted in pairs
    )
