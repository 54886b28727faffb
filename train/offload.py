"""Activations kept in the CPU's memory until the backward pass needs them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

SMALL = 2**16  # bytes: smaller tensors stay where they are


@contextmanager
def offloaded(model: nn.Module) -> Iterator[None]:
    """Within this block, tensors saved for the backward pass go to the CPU, pinned, and back.

    The model's own weights, which autograd saves as well, stay where they are; so torch's
    `save_on_cpu`, which moves everything, is not used. Under checkpointing only the inputs of
    blocks are saved.
    """
    tensors = (*model.parameters(), *model.buffers())
    weights = {tensor.untyped_storage().data_ptr() for tensor in tensors}

    def pack(tensor: Tensor):
        if tensor.nbytes < SMALL or tensor.untyped_storage().data_ptr() in weights:
            return tensor
        saved = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return tensor.device, saved.copy_(tensor)

    def unpack(packed) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed[1].to(packed[0], non_blocking=True)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
