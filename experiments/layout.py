"""A run laid out on devices, on torch's meta device: what each holds, and what makes it fit."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from adapters import attach, use
from adapters.attach import in_order
from adapters.formats.folders import read_adapter
from experiments.base import DTYPES, dtype_named
from experiments.continued import shape_of_start
from files.errors import UserError
from files.reading import read_json
from model.config import describe, skeleton
from model.devices import balance
from model.language import LanguageModel
from model.packed import bytes_by_place
from model.quantize import quantization_of, quantize_skeleton, resolve_quantization
from model.registry import find
from model.show import size_text
from train.plan.advice import CONTEXT, usable
from train.plan.dry_run import answer, matrices_of, training_step
from train.plan.phases import Step
from train.settings import Settings
from train.teacher import TEACHER, Teacher


@dataclass(frozen=True)
class Target:
    """The devices of a plan, and what a row is taken to be."""

    devices: list[str]  # names, all cpu or all cuda
    memory: list[int] | None  # bytes of each device, if given
    length: int  # tokens of a row, and of a prompt
    labelled: float  # share of them with a label
    processes: int = 1  # each with a device of its own

    @property
    def kind(self) -> str:
        return torch.device(self.devices[0]).type

    @property
    def room(self) -> list[int]:
        """Bytes of each device that tensors can have."""
        return [usable(size, self.kind, self.processes) for size in self.memory]

    def fits(self, need: list[int]) -> bool:
        """Whether each device has room for so many bytes."""
        return all(size <= room for size, room in zip(need, self.room, strict=True))


@dataclass(frozen=True)
class Planned:
    """A run, counted."""

    model: LanguageModel
    step: Step
    blocks: list[int]  # on each device
    stage: list[int]  # the device of each place: the embedding, every block, the head
    training: list[int]  # bytes of each device at the peak of a step

    def answering(self, s: Settings, target: Target) -> list[int]:
        """Bytes of each device at the peak while the run answers its test problems."""
        phase = answer(self.model, s.eval, target.length, target.kind)
        if s.shard:
            phase = phase.sharded(matrices_of(self.model, target.kind), target.processes)
        peak = phase.peak(self.stage)
        if s.eval.decode_memory != "packed":
            return peak
        return [size + copy for size, copy in zip(peak, self.packed(s, target), strict=True)]

    def packed(self, s: Settings, target: Target) -> list[int]:
        """Bytes of each device of the packed copies that answers may use (model/packed.py)."""
        return self.by_device(bytes_by_place(self.model, target.kind, s.shard))

    def by_device(self, sizes: list[int]) -> list[int]:
        """Bytes by place -> bytes by device."""
        total = [0] * len(self.blocks)
        for size, device in zip(sizes, self.stage, strict=True):
            total[device] += size
        return total


def with_adapter(s: Settings, kind: str) -> LanguageModel:
    """The model of the settings with its adapter on the meta device, as for a device of this kind.

    Raises UserError.
    """
    family, config, where = describe(s.model, s.revision or None)
    model = skeleton(family, config)
    raw = raw_config(s, where)
    dtype = dtype_named(s.dtype)
    if dtype is None:  # as load_base: the checkpoint's, or float16 where nothing says
        dtype = DTYPES.get(str(raw.get("torch_dtype") or raw.get("dtype")), torch.float16)
        dtype = torch.float32 if dtype == torch.float16 and kind == "cpu" else dtype
    model.to(dtype)
    model.dtype = dtype
    if stored := resolve_quantization(s.quantize, quantization_of(raw, where)[0], where):
        if s.shard:
            raise UserError(
                f"{s.model} is stored in {stored}, and --shard lays whole weights over processes: "
                "give a model that is not quantised"
            )
        quantize_skeleton(model, stored)
    frozen = s.load | ({TEACHER: s.teacher} if s.teacher else {})
    for name, folder in frozen.items():
        attach(model, read_adapter(model, Path(folder))[0], name)
    if s.continue_from:
        shape_of_start(model, Path(s.continue_from))
    else:
        attach(model, s.adapter)
    use(model, [entry for entry in in_order(model) if entry != TEACHER], train=["default"])
    return model


def raw_config(s: Settings, where: str) -> dict:
    """The table in which `describe` found the configuration."""
    return read_json(Path(where)) if where.endswith(".json") else find(s.model).config


def batches_of(s: Settings, length: int, processes: int = 1) -> int:
    """Micro-batches of a step, of rows of `length` tokens, in the process that has most."""
    batches = math.ceil(s.train.batch_size / s.train.rows_at_once(length))
    return math.ceil(batches / processes)


def planned(s: Settings, target: Target) -> Planned:
    """Count a step and lay the blocks over the devices. Raises UserError."""
    model = with_adapter(s, target.kind)
    step = training_step(
        model, s.train, target.length, target.labelled, target.kind, target.processes,
        Teacher(model) if s.teacher else None,
    )  # fmt: skip
    if s.shard:
        step = step.sharded(matrices_of(model, target.kind), target.processes)
    blocks = s.layers_per_device or blocks_on(step, batches_of(s, target.length), target)
    if len(blocks) != len(target.devices) or sum(blocks) != len(model.blocks):
        raise UserError(
            f"layers_per_device = {blocks}: the plan is for {len(target.devices)} devices and the "
            f"model has {len(model.blocks)} layers"
        )
    stage = stage_of(blocks)
    return Planned(model, step, blocks, stage, step.phase.peak(stage, batches_of(s, target.length)))


def blocks_on(step: Step, batches: int, target: Target) -> list[int]:
    """How many blocks go on each device.

    As many on each, so that all have as much to do. If that does not fit into the given memory:
    so that the largest share of its memory that any device needs is least.
    """
    layers, devices = len(step.weights) - 2, len(target.devices)
    more = layers % devices  # the first devices, which have no head to compute, have one more
    even = [layers // devices + (number < more) for number in range(devices)]
    if min(even) > 0 and (
        target.memory is None or target.fits(step.phase.peak(stage_of(even), batches))
    ):
        return even
    each = step.phase.peak(list(range(len(step.weights))))  # every place on its own device
    room = target.room if target.memory else [1] * devices
    cost = [static + kept for static, kept in zip(step.static, step.phase.kept, strict=True)]
    blocks = balance(cost[1:-1], each[0], each[-1], room)

    def largest(blocks: list[int]) -> float:
        need = step.phase.peak(stage_of(blocks), batches)
        return max(size / available for size, available in zip(need, room, strict=True))

    # the first devices keep more micro-batches: move single blocks to a neighbour while that helps
    share = largest(blocks)
    while True:
        moves = [
            [*blocks[:i], blocks[i] + by, blocks[i + 1] - by, *blocks[i + 2 :]]
            for i in range(len(blocks) - 1)
            for by in (1, -1)
        ]
        better, moved = min(
            ((largest(move), move) for move in moves if min(move) > 0), default=(share, blocks)
        )
        if better >= share:
            return blocks
        share, blocks = better, moved


def layers_for(s: Settings, devices: list[torch.device]) -> list[int]:
    """How many layers a run that is about to begin puts on each device, by their free memory.

    Empty for devices of two kinds, which cannot be planned: then the weights alone are balanced
    (model/devices.py). Raises UserError for a device that is in use.
    """
    if len({device.type for device in devices}) > 1:
        return []
    free = None
    if devices[0].type == "cuda":
        # the CUDA context is allocated already
        free = [torch.cuda.mem_get_info(device)[0] + CONTEXT for device in devices]
        for device, size in zip(devices, free, strict=True):
            if usable(size) < 10**8:
                raise UserError(
                    f"{device} has {size_text(size - CONTEXT)} of memory left: "
                    "something else is using it"
                )
    return planned(s, Target([str(device) for device in devices], free, s.train.cutoff, 1.0)).blocks


def stage_of(blocks: list[int]) -> list[int]:
    """The device of each place: the embedding, every block, the head."""
    of_blocks = [device for device, count in enumerate(blocks) for _ in range(count)]
    return [0, *of_blocks, len(blocks) - 1]
