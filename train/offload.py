"""Activations kept in the CPU's memory until the backward pass needs them."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from model.language import LanguageModel

SMALL = 2**16  # bytes: smaller tensors stay where they are


class Elsewhere:
    """A tensor's copy in the CPU's memory, pinned if the tensor is on a GPU."""

    def __init__(self, tensor: Tensor):
        self.device = tensor.device
        self.copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        self.copy.copy_(tensor)
        self.back = lambda: None  # a weak reference to what `tensor` has returned

    def tensor(self) -> Tensor:
        """The tensor on its device; several readers share it while one of them holds it."""
        back = self.back()
        if back is None:
            back = self.copy.to(self.device, non_blocking=True)
            self.back = weakref.ref(back)
        return back


@contextmanager
def offloaded(model: LanguageModel) -> Iterator[None]:
    """Within this block, tensors saved for the backward pass go to the CPU, pinned, and back.

    What several operations save is copied once. The model's own weights, which autograd saves as
    well, stay where they are; so torch's `save_on_cpu`, which moves everything, is not used. Under
    checkpointing only the inputs of blocks are saved.
    """
    tensors = (*model.parameters(), *model.buffers())
    weights = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    copies: dict[tuple, Elsewhere] = {}  # by what was saved, as long as that is on the device
    watched: dict[int, weakref.ref] = {}  # storage -> itself; its copies go from `copies` with it

    def forget(storage: int) -> None:
        del watched[storage]
        for key in [key for key in copies if key[0] == storage]:
            del copies[key]

    def pack(tensor: Tensor):
        storage = tensor.untyped_storage()
        if tensor.nbytes < SMALL or storage.data_ptr() in weights:
            return tensor
        whole = tensor.is_contiguous()
        shape = (tensor.numel(),) if whole else (*tensor.shape, *tensor.stride())
        address = storage._cdata
        key = (address, tensor._version, tensor.dtype, tensor.storage_offset(), shape)
        if key not in copies:
            if address not in watched:
                watched[address] = weakref.ref(storage, lambda _: forget(address))
            copies[key] = Elsewhere(tensor.flatten() if whole else tensor)
        return copies[key], tensor.shape

    def unpack(packed) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        elsewhere, shape = packed
        return elsewhere.tensor().view(shape)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
