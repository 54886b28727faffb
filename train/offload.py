"""Activations kept in the CPU's memory until the backward pass needs them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SMALL = 2**16  # bytes: what is not worth the way


@contextmanager
def offloaded(model: nn.Module) -> Iterator[None]:
    """What this block saves for a backward pass goes to the CPU's memory, pinned where it comes from a GPU, and returns when it is needed.

    The model's own weights, which autograd saves beside the activations, stay where they are. Under checkpointing only the inputs of blocks are saved.
    """
    weights = {
        tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())
    }

    def pack(tensor: Tensor):
        if (
            tensor.numel() * tensor.element_size() < SMALL
            or tensor.untyped_storage().data_ptr() in weights
        ):
            return tensor
        kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return tensor.device, kept.copy_(tensor)

    def unpack(packed) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed[1].to(packed[0], non_blocking=True)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
