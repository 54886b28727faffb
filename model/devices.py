"""Layers over several devices: which blocks lie where.

    cuda:0                                      cuda:1
    embedding ── block 0 ── ... ── block k-1 ──→── block k ── ... ── final norm ── head

Activations move at the arrow: in `LanguageModel.run`, and where a training step is cut into stages (train/pipeline.py). A head that is tied to the
embedding stays with it, so that the one weight exists once: hidden states go back to the first device then, a few kilobytes a token.
"""

from collections.abc import Sequence

import torch
from torch import nn

from files.errors import UserError
from model.language import LanguageModel
from model.parts import CHUNK, Stage


def balance(sizes: Sequence[int], first: int, last: int, room: Sequence[int]) -> list[int]:
    """How many of the blocks go on each device, in their order, so that the largest share of its room that any device uses is least.

    sizes: bytes of each block; first, last: bytes of what else lies on the first and on the last device; room: bytes of each device.
    Every device gets a block at least. Raises UserError for more devices than blocks. (Dynamic programming over the boundaries.)
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
    best: dict[int, tuple[float, list[int]]] = {
        0: (0.0, [])
    }  # blocks placed so far -> (largest share so far, counts)
    for device in range(S):
        found: dict[int, tuple[float, list[int]]] = {}
        for end in range(device + 1, L - (S - 1 - device) + 1):
            if device == S - 1 and end < L:
                continue
            options = [
                (
                    max(share, (before[end] - before[start] + extra[device]) / room[device]),
                    [*counts, end - start],
                )
                for start, (share, counts) in best.items()
                if start < end
            ]
            found[end] = min(options)
        best = found
    return best[L][1]


def stages(devices: Sequence[torch.device], counts: Sequence[int]) -> tuple[Stage, ...]:
    """The stages of a model with so many blocks on each device."""
    ends = [sum(counts[: number + 1]) for number in range(len(counts))]
    return tuple(
        Stage(device, end - count, end)
        for device, count, end in zip(devices, counts, ends, strict=True)
    )


def parse_devices(text: str) -> list[torch.device]:
    """ "cuda:0,cuda:1" -> devices that are there. Raises UserError."""
    return [device_named(name.strip()) for name in text.split(",")]


def device_named(name: str) -> torch.device:
    """A device that is there: cpu, cuda, cuda:1 ... Raises UserError."""
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError(f"device {name!r} is not one of auto, cpu, cuda, cuda:0, cuda:1 ...")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device {name!r} cannot be used: torch sees {torch.cuda.device_count()} CUDA devices here"
        )
    return device


def room_of(devices: Sequence[torch.device]) -> list[int]:
    """Free bytes of each device, as far as the layers' balance needs to know: those of CUDA devices; a CPU takes as much as the largest of them."""
    free = [
        torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0 for device in devices
    ]
    return [one or max(free) or 1 for one in free]


def sizes(model: LanguageModel) -> tuple[list[int], int, int]:
    """(bytes of each block's tensors, of all in front of the blocks, of all behind them), parameters in 16 bits."""
    found = [0] * (len(model.blocks) + 2)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[model.place_of(name) + 1] += tensor.numel() * (
            2 if isinstance(tensor, nn.Parameter) else tensor.element_size()
        )
    return found[1:-1], found[0], found[-1]


def split(
    model: LanguageModel, devices: Sequence[torch.device], counts: Sequence[int] | None = None
) -> None:
    """Lay the blocks of a model over devices: from now on `model.device_of` says where a tensor belongs; what is there already moves.

    counts: blocks on each device; None: balanced by the bytes of the weights against the devices' free memory, with room for the logits beside the head.
    Raises UserError.
    """
    if counts is None:
        blocks, front, back = sizes(model)
        logits = (
            3 * 4 * CHUNK * model.lm_head.out_features
        )  # each three times in float32: they, what the loss makes of them, their gradient
        front, back = (front + logits, back) if model.tied else (front, back + logits)
        counts = balance(blocks, front, back, room_of(devices))
    elif len(counts) != len(devices) or sum(counts) != len(model.blocks) or min(counts) < 1:
        raise UserError(
            f"layers {list(counts)} on {len(devices)} devices: give a count above 0 for each device, {len(model.blocks)} in all"
        )
    model.stages = stages(devices, counts)
    tied = model.tied
    for path, module in model.named_modules():
        for leaf, tensor in [
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ]:
            if not tensor.is_meta:
                moved = tensor.detach().to(model.device_of(f"{path}.{leaf}"))
                setattr(
                    module,
                    leaf,
                    nn.Parameter(moved, requires_grad=tensor.requires_grad)
                    if isinstance(tensor, nn.Parameter)
                    else moved,
                )
    if tied:
        model.tie()
