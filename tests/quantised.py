"""Weights as int8 and nf4, and how they are compared."""

import torch

from model.quantize import STORED_AS, quantized
from model.sites import Linear

FAMILIES = ["llama", "bloom", "opt", "gptj"]
HOW = list(STORED_AS)


def stored(how: str, weight: torch.Tensor, device="cpu"):
    """A Linear without bias that holds this weight quantised."""
    with torch.device("meta"):
        plain = Linear(weight.shape[1], weight.shape[0])
    linear = STORED_AS[how](plain)
    linear.allocate(torch.device(device))
    linear.store(weight.to(device))
    assert {
        leaf: (tuple(tensor.shape), tensor.dtype) for leaf, tensor in linear._buffers.items()
    } == linear.layout()
    linear.dtype = weight.dtype
    return linear


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bits(model) -> list[torch.Tensor]:
    """All that a quantised model stores for its Linears."""
    return [
        buffer.clone()
        for linear in quantized(model).values()
        for buffer in linear.buffers(recurse=False)
    ]


def same(one, other) -> bool:
    return len(one) == len(other) > 0 and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )
