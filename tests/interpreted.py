"""What tests/model/test_fused.py runs in a process of its own: the kernels of
model/quantize/fused.py by triton's interpreter, on a CPU, beside the plain forms.

Prints, as JSON, the largest difference of a product over the standard deviation of its results,
and the shares of nf4's weights that differ, by dtype.
"""

import json
import os

os.environ["TRITON_INTERPRET"] = "1"  # triton reads it when it is imported

import torch
from quantised import noise, stored

from model.quantize import linear as choice

SHAPES = [(37, 192), (13, 1344)]  # out, in: of more than 256 blocks, more than are summed at once


def both(function):
    """(by the kernels, plainly)."""
    results = []
    for choice.FUSED_ON in (("cpu",), ()):
        results.append(function())
    return results


def noting(function, calls: list[str]):
    def noted(*arguments):
        calls.append(function.__name__)
        return function(*arguments)

    return noted


def main() -> dict:
    found = {"calls": []}
    kernels = choice.fused_on(torch.device("cpu"))
    for name in ("int8_product", "nf4_product", "nf4_matrix"):
        setattr(kernels, name, noting(getattr(kernels, name), found["calls"]))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        table = found[str(dtype)] = {"int8": 0.0, "nf4": 0.0, "gradient": 0.0, "weights": 0.0}
        for how, shape in (("int8", SHAPES[0]), *(("nf4", shape) for shape in SHAPES)):
            linear = stored(how, noise(*shape).to(dtype) / 9)
            for rows in ((1,), (2, 4)):
                x = noise(*rows, shape[1], seed=1).to(dtype)
                one, other = both(lambda linear=linear, x=x: linear(x).float())
                assert one.shape == other.shape
                far = (one - other).abs().max() / other.std()
                table[how] = max(table[how], float(far))
        one, other = both(lambda linear=linear: linear.dequantized(linear.dtype))
        table["weights"] = float((one != other).float().mean())
        x = noise(9, SHAPES[-1][1]).to(dtype).requires_grad_()  # too many rows for the product
        one, other = both(
            lambda linear=linear, x=x: torch.autograd.grad(linear(x).sum(), x)[0].float()
        )
        table["gradient"] = float((one - other).abs().max() / other.std())
    found["calls"] = {name: found["calls"].count(name) for name in set(found["calls"])}
    return found


if __name__ == "__main__":
    print(json.dumps(main()))
