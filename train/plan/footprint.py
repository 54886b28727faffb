"""What a step holds in memory, counted: every storage of a real step on torch's meta device.

Meta tensors have shapes and no values, so that a step of a model of any size takes seconds. What
torch allocates for tensors is counted; workspaces of kernels (oneDNN, cuBLAS) are not seen.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from model.kernels import META_KERNELS, Kernels, is_flash
from model.language import LanguageModel
from train.offload import SMALL, Room

aten = torch.ops.aten


def sdpa_flops(q, k, v, *_, **__) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def sdpa_backward_flops(grad, q, k, v, *_, **__) -> int:
    return sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)


FLOPS = {  # operation -> its formula: torch's own table and what it lacks
    **flop_registry,
    aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flops,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flops,
}


class Footprint(TorchDispatchMode):
    """Within this block: every storage that an operation allocates, by place, until it is freed.

    `place`: 0 is the embedding, 1 ... L the blocks, L + 1 the last norm, head and loss (`watch`
    moves it). round_to: an allocator's granularity in bytes.
    """

    def __init__(self, round_to: int = 1):
        super().__init__()
        self.place, self.round_to = 0, round_to
        self.events: list[tuple[int, int]] = []  # (place, bytes; below 0: freed)
        # address of a storage -> (itself, place, bytes)
        self.alive: dict[int, tuple[weakref.ref, int, int]] = {}
        self.here = True  # False: what is allocated is in the CPU's memory and does not count
        self.host = 0  # bytes of offloaded tensors in the CPU's memory
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if (formula := FLOPS.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self.see(tensor, counted=self.here)
        return out

    def see(self, tensor: Tensor, place: int | None = None, counted: bool = True) -> None:
        """Count the storage of this tensor from now on, once; or, counted=False, never."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.alive:
            return
        place = self.place if place is None else place
        size = -(-storage.nbytes() // self.round_to) * self.round_to if counted else 0
        self.alive[key] = weakref.ref(storage, lambda _: self.died(key)), place, size
        self.events.append((place, size))

    def died(self, key: int) -> None:
        _, place, size = self.alive.pop(key)
        self.events.append((place, -size))

    @contextmanager
    def offloaded(self, weights: set[int]) -> Iterator[None]:
        """train/offload.py on the meta device: saved tensors are elsewhere until they are needed.

        weights: addresses of the storages that stay.
        """
        room = Room()

        def pack(tensor: Tensor):
            if tensor.nbytes < SMALL or tensor.untyped_storage()._cdata in weights:
                return tensor
            self.here = False
            saved = torch.empty_like(tensor)
            self.here = True
            self.host += room.take(tensor.nbytes)  # torch keeps it for the next step
            return (saved,)

        def unpack(packed) -> Tensor:
            return packed if isinstance(packed, Tensor) else packed[0].clone()

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield

    def live(self, places: int) -> list[int]:
        """Bytes that are allocated now, by place."""
        sizes = [0] * places
        for _, place, size in self.alive.values():
            sizes[place] += size
        return sizes


@contextmanager
def watch(model: LanguageModel, footprint: Footprint) -> Iterator[None]:
    """Let `footprint.place` follow the forward pass, recomputation and backward pass."""
    blocks = len(model.blocks)

    def go(place: int) -> None:
        footprint.place = place

    def enter(place: int) -> Callable:
        return lambda module, args: go(place)

    def leave(place: int) -> Callable:
        def hook(module, args, x: Tensor) -> None:
            if x.requires_grad:
                x.register_hook(lambda grad: go(place))  # the block's backward pass begins
            if place == blocks and footprint.place == place:
                go(place + 1)

        return hook

    handles = []
    for place, block in enumerate(model.blocks, 1):
        handles.append(block.register_forward_pre_hook(enter(place)))
        handles.append(block.register_forward_hook(leave(place)))
    head = 0 if model.tied else blocks + 1  # a tied head is where the embedding is
    handles.append(model.lm_head.register_forward_pre_hook(enter(head)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def kernels_of(device: str) -> Iterator[None]:
    """Within this block, tensors on "meta" are computed by the kernels of `device` (cpu or cuda).

    What is kept for the backward pass depends on them; "meta" itself writes out what they fuse.
    """
    cuda = Kernels("cuda", sdpa_cuda, rms_norm_cuda, dropout_cuda)
    token = META_KERNELS.set(cuda if device == "cuda" else Kernels("cpu", sdpa_cpu))
    try:
        yield
    finally:
        META_KERNELS.reset(token)


def sdpa_cpu(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, enable_gqa: bool
) -> Tensor:
    """The fused kernel keeps its inputs, its output and a float32 number per query and head."""
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask.logical_not(), 0.0)
    return aten._scaled_dot_product_flash_attention_for_cpu(
        q, k, v, 0.0, is_causal, attn_mask=mask
    )[0]


def sdpa_cuda(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, enable_gqa: bool
) -> Tensor:
    """The kernel that torch chooses on a card.

    Flash attention in 16 bits without a mask; else memory-efficient attention, for which
    `attention` repeats grouped heads. cuDNN's is switched off (model/devices.py).
    """
    if is_flash(q, mask):
        return aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal)[0]
    if mask is not None:
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask.logical_not(), 0.0)
        if any(stride % 8 for stride in mask.stride()[:-1]):  # torch pads it, in each layer anew
            keys = mask.shape[-1]
            mask = F.pad(mask, (0, 8 - keys % 8))[..., :keys]
        mask = mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    return aten._scaled_dot_product_efficient_attention(
        q, k, v, mask, q.requires_grad or k.requires_grad or v.requires_grad, 0.0, is_causal
    )[0]


def rms_norm_cuda(
    x: Tensor, shape: tuple[int, ...], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    return aten._fused_rms_norm(x, list(shape), weight, eps)[0]


def dropout_cuda(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(x, p, True)[0] if training and p else x


def sum_dry(parameters: list[nn.Parameter]) -> None:
    """What `Processes.sum_gradients` allocates: all gradients in one tensor, and views of it."""
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    del gradients
    parts = flat.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter) if parameter.grad is not None else None
