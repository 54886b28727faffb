"""Activations kept in the CPU's memory until the backward pass needs them."""

import math
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from model.language import LanguageModel

SMALL = 2**16  # bytes: smaller tensors stay where they are
PIECE = 2**26  # bytes of pinned memory that are asked for at once
AHEAD = 4  # tensors that are on their way back before they are needed
ON_THEIR_WAY = 8  # tensors that leave at once, or were used by work that is not done: then it waits


class Room:
    """How copies lie side by side in large pieces of pinned memory.

    torch rounds each request for such memory up to a power of two. A piece goes back to torch,
    which keeps it, when no copy in it is needed any more.
    """

    def __init__(self):
        self.size = self.start = self.end = 0  # of the piece; where the last copy lies in it

    def take(self, size: int) -> int:
        """Place a copy of so many bytes -> the bytes of the new piece, if it needs one, else 0."""
        self.start, new = math.ceil(self.end / 64) * 64, 0
        if self.start + size > self.size:
            self.size = new = max(PIECE, 1 << (size - 1).bit_length())
            self.start = 0
        self.end = self.start + size
        return new


class Arena(Room):
    """That memory, pinned or not."""

    def __init__(self, pinned: bool):
        super().__init__()
        self.pinned, self.piece = pinned, torch.empty(0)

    def room_for(self, tensor: Tensor) -> Tensor:
        """Uninitialised memory for a tensor of this shape and dtype."""
        if new := self.take(tensor.nbytes):
            self.piece = torch.empty(new, dtype=torch.uint8, pin_memory=self.pinned)
        return self.piece[self.start : self.end].view(tensor.dtype).view(tensor.shape)


class Copier:
    """Copies from the memory of a device and back, at once: for a CPU."""

    def out(self, tensor: Tensor, copy: Tensor) -> None:
        """Make `copy`, in the CPU's memory, what `tensor` is."""
        copy.copy_(tensor)

    def back(self, copy: Tensor, device: torch.device) -> tuple[Tensor, object]:
        """(a tensor on the device, the event of its arrival)."""
        return copy.to(device, copy=True), None

    def arrived(self, tensor: Tensor, event: object) -> None:
        """What is computed next uses this tensor."""


class CardCopier(Copier):
    """The same beside the computation, on a stream of its own.

    Python runs ahead of a GPU. So that memory of what left, and of what is used no more, is free
    again before the next is taken, it waits when too much is on its way.
    """

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.leaving: deque = deque()  # (event, tensor): memory that must not be used again yet
        self.used: deque = deque()  # events: the computation has come to a tensor

    def out(self, tensor: Tensor, copy: Tensor) -> None:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            copy.copy_(tensor, non_blocking=True)
            self.leaving.append((self.stream.record_event(), tensor))
        if len(self.leaving) > ON_THEIR_WAY:
            self.leaving.popleft()[0].synchronize()

    def back(self, copy: Tensor, device: torch.device) -> tuple[Tensor, object]:
        while self.leaving and self.leaving[0][0].query():
            self.leaving.popleft()
        with torch.cuda.stream(self.stream):
            return copy.to(device, non_blocking=True), self.stream.record_event()

    def arrived(self, tensor: Tensor, event: object) -> None:
        computation = torch.cuda.current_stream(self.device)
        computation.wait_event(event)
        tensor.record_stream(computation)
        self.used.append(computation.record_event())
        if len(self.used) > ON_THEIR_WAY:
            self.used.popleft().synchronize()


class Elsewhere:
    """A tensor's copy in the CPU's memory, pinned if the tensor is on a GPU."""

    def __init__(self, tensor: Tensor, arena: Arena, copier: Copier):
        self.device, self.copier = tensor.device, copier
        self.copy = arena.room_for(tensor)
        copier.out(tensor, self.copy)
        self.ahead: tuple[Tensor, object] | None = None  # on its way back
        self.back = lambda: None  # a weak reference to what `tensor` has returned

    def start(self) -> None:
        """Let it come back, unless it is there."""
        if self.ahead is None and self.back() is None:
            self.ahead = self.copier.back(self.copy, self.device)

    def tensor(self) -> Tensor:
        """The tensor on its device; several readers share it while one of them holds it."""
        back = self.back()
        if back is None:
            self.start()
            back, event = self.ahead
            self.ahead = None
            self.copier.arrived(back, event)
            self.back = weakref.ref(back)
        return back


@contextmanager
def offloaded(model: LanguageModel) -> Iterator[None]:
    """Within this block, tensors saved for the backward pass go to the CPU, pinned, and back.

    What several operations save is copied once. The model's own weights, which autograd saves as
    well, stay where they are; so torch's `save_on_cpu`, which moves everything, is not used. Under
    checkpointing only the inputs of blocks are saved. On a GPU all copies are made beside the
    computation; the backward pass, which goes through them from the last to the first, lets those
    that come next come back ahead. (Never run on a card.)
    """
    tensors = (*model.parameters(), *model.buffers())
    weights = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    places: dict[torch.device, tuple[Arena, Copier]] = {}
    order: list[weakref.ref] = []  # the copy of each tensor that was saved
    # by what was saved, as long as that is on the device and the backward pass is to come
    copies: weakref.WeakValueDictionary[tuple, Elsewhere] = weakref.WeakValueDictionary()
    watched: dict[int, weakref.ref] = {}  # storage -> itself; its copies go from `copies` with it

    def forget(storage: int) -> None:
        del watched[storage]
        for key in [key for key in list(copies) if key[0] == storage]:
            del copies[key]

    def pack(tensor: Tensor):
        storage = tensor.untyped_storage()
        if tensor.nbytes < SMALL or storage.data_ptr() in weights:
            return tensor
        whole = tensor.is_contiguous()
        shape = (tensor.numel(),) if whole else (*tensor.shape, *tensor.stride())
        address = storage._cdata
        key = (address, tensor._version, tensor.dtype, tensor.storage_offset(), shape)
        if (copy := copies.get(key)) is None:
            if address not in watched:
                watched[address] = weakref.ref(storage, lambda _: forget(address))
            if tensor.device not in places:
                copier = CardCopier(tensor.device) if tensor.is_cuda else Copier()
                places[tensor.device] = Arena(tensor.is_cuda), copier
            copy = Elsewhere(tensor.flatten() if whole else tensor, *places[tensor.device])
            copies[key] = copy
        order.append(weakref.ref(copy))
        return copy, tensor.shape, len(order) - 1

    def unpack(packed) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        elsewhere, shape, number = packed
        elsewhere.start()
        for other in order[max(0, number - AHEAD) : number][::-1]:
            if (earlier := other()) is not None:  # its backward pass is still to come
                earlier.start()
        return elsewhere.tensor().view(shape)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield
