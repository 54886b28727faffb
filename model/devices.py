"""Layers over several devices: which blocks are on which.

    cuda:0                                      cuda:1
    embedding ── block 0 ── ... ── block k-1 ──→── block k ── ... ── final norm ── head

Activations move at the arrow, in `LanguageModel.run` and in train/pipeline.py. A head that is tied
to the embedding is on the first device, so that their weight exists once, and hidden states move
back to it.
"""

from collections.abc import Sequence

import torch
from torch import nn

from files.errors import UserError
from model.language import LanguageModel
from model.parts import CHUNK
from model.placed import Stage


def balance(sizes: Sequence[int], first: int, last: int, room: Sequence[int]) -> list[int]:
    """The number of blocks on each device, so that the largest used share of a device is smallest.

    sizes: bytes of each block. first, last: bytes of the other weights on the first and the last
    device. room: bytes of each device. Each device gets at least one block; raises UserError for
    more devices than blocks. Dynamic programming over the boundaries.
    """
    L, S = len(sizes), len(room)
    if S > L:
        raise UserError(f"{S} devices are too many for a model of {L} layers: name {L} at most")
    before = [0]
    for size in sizes:
        before.append(before[-1] + size)
    extra = [0] * S
    extra[0] += first
    extra[-1] += last
    best = {0: (0.0, [])}  # number of blocks placed -> (largest share, counts)
    for device in range(S):
        longer = {}
        for end in [L] if device == S - 1 else range(device + 1, L - (S - 1 - device) + 1):
            options = []
            for start, (share, counts) in best.items():
                if start < end:
                    used = (before[end] - before[start] + extra[device]) / room[device]
                    options.append((max(share, used), [*counts, end - start]))
            longer[end] = min(options)
        best = longer
    return best[L][1]


def stages(devices: Sequence[torch.device], counts: Sequence[int]) -> tuple[Stage, ...]:
    """The stages of a model with `counts` blocks on each device."""
    ends = [sum(counts[: number + 1]) for number in range(len(counts))]
    return tuple(
        Stage(device, end - count, end)
        for device, count, end in zip(devices, counts, ends, strict=True)
    )


def parse_devices(text: str) -> list[torch.device]:
    """ "cuda:0,cuda:1" -> available devices. Raises UserError."""
    return [device_named(name.strip()) for name in text.split(",")]


def device_named(name: str) -> torch.device:
    """The available device of a name: cpu, cuda, cuda:1 ... Raises UserError."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not one of auto, cpu, cuda, cuda:0, cuda:1 ...")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r} cannot be used: torch sees {torch.cuda.device_count()} CUDA devices "
            "here"
        )
    return device


def start_cards(devices: Sequence[torch.device]) -> None:
    """Make the first of the CUDA devices the current one, and leave out cuDNN's attention.

    Pinned memory and NCCL use the current device: they would open a context on cuda:0 as well.
    cuDNN, which torch prefers on an H100, prepares a plan for each new shape (every micro-batch has
    another length), and has no deterministic backward pass.
    """
    cards = [device for device in devices if device.type == "cuda"]
    if cards:
        torch.cuda.set_device(cards[0])
        torch.backends.cuda.enable_cudnn_sdp(False)


def room_of(devices: Sequence[torch.device]) -> list[int]:
    """Free bytes of each CUDA device, for `balance`; a CPU counts as the largest of them."""
    free = [torch.cuda.mem_get_info(d)[0] if d.type == "cuda" else 0 for d in devices]
    return [size or max(free) or 1 for size in free]


def sizes(model: LanguageModel) -> tuple[list[int], int, int]:
    """(bytes of each block, of what comes before the blocks, of what comes after them).

    Parameters count two bytes each, buffers as they are stored.
    """
    totals = [0] * (len(model.blocks) + 2)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        size = 2 if isinstance(tensor, nn.Parameter) else tensor.element_size()
        totals[model.place_of(name) + 1] += tensor.numel() * size
    return totals[1:-1], totals[0], totals[-1]


def split(
    model: LanguageModel, devices: Sequence[torch.device], counts: Sequence[int] | None = None
) -> None:
    """Divide the blocks of a model over devices: set `model.stages` and move what is loaded.

    counts: blocks on each device; None: balanced by the weights' bytes and the devices' free
    memory, with room for the logits on the head's device. Raises UserError.
    """
    if counts is None:
        blocks, front, back = sizes(model)
        logits = 3 * 4 * CHUNK * model.lm_head.out_features  # float32, softmax and gradient, too
        front, back = (front + logits, back) if model.tied else (front, back + logits)
        counts = balance(blocks, front, back, room_of(devices))
    elif len(counts) != len(devices) or sum(counts) != len(model.blocks) or min(counts) < 1:
        raise UserError(
            f"layers {list(counts)} on {len(devices)} devices: give a count above 0 for each "
            f"device, {len(model.blocks)} in all"
        )
    model.stages = stages(devices, counts)
    tied = model.tied
    for path, module in model.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for leaf, tensor in own:
            if not tensor.is_meta:
                moved = tensor.detach().to(model.device_of(f"{path}.{leaf}"))
                if isinstance(tensor, nn.Parameter):
                    moved = nn.Parameter(moved, requires_grad=tensor.requires_grad)
                setattr(module, leaf, moved)
    if tied:
        model.tie()
