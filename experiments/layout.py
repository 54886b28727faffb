"""A run laid out on devices without memory: what each would hold, whether that fits, and what to change if not."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from adapters import attach, use
from adapters.attach import in_order
from adapters.config import resolve
from adapters.formats.folders import read_adapter
from experiments.continued import shape_of_start
from files.errors import UserError
from files.reading import read_json
from model.config import describe, skeleton
from model.devices import balance
from model.quantize import how_stored, quantization_of, quantize_skeleton
from model.registry import find
from model.show import size_text
from train.base import DTYPES
from train.plan.advice import CONTEXT, fewer_bits, for_answers, for_training, options_for, usable
from train.plan.dry_run import Step, answer, everything, matrices_of, training_step
from train.settings import Settings


@dataclass(frozen=True)
class Target:
    """Where a run is to go: the names of its devices (all cpu or all cuda), their bytes if they are given, and what a row is taken to be."""

    devices: list[str]
    memory: list[int] | None
    length: int  # tokens of a row, and of a prompt
    labelled: float  # share of them with a label
    processes: int = 1  # each with a device of its own

    @property
    def kind(self) -> str:
        return torch.device(self.devices[0]).type


@dataclass(frozen=True)
class Planned:
    """A run, counted."""

    model: nn.Module
    step: Step
    blocks: list[int]  # on each device
    stage: list[int]  # the device of each place: the embedding, every block, the head
    training: list[int]  # bytes of each device at the peak of a step

    def answering(self, made: Settings, target: Target) -> list[int]:
        """Bytes of each device at the peak while the run answers its test problems."""
        phase = answer(self.model, made.eval, target.length, target.kind)
        return (
            phase.in_parts(matrices_of(self.model, target.kind), target.processes)
            if made.shard
            else phase
        ).peak(self.stage)

    def by_device(self, sizes: list[int]) -> list[int]:
        return [
            sum(size for size, one in zip(sizes, self.stage, strict=True) if one == device)
            for device in range(len(self.blocks))
        ]


def dtype_of(made: Settings, raw: dict, kind: str) -> torch.dtype:
    """That of the base on a device: as train/base.py loads it. Where nothing says what the checkpoint has, float16."""
    if made.dtype not in ("auto", *DTYPES):
        raise UserError(f"dtype {made.dtype!r} is not one of auto, {', '.join(DTYPES)}")
    if made.dtype != "auto":
        return DTYPES[made.dtype]
    dtype = DTYPES.get(str(raw.get("torch_dtype") or raw.get("dtype")), torch.float16)
    return torch.float32 if dtype == torch.float16 and kind == "cpu" else dtype


def with_adapter(made: Settings, kind: str) -> nn.Module:
    """The model of the settings without memory, as it would be on a device of this kind, its adapter attached. Raises UserError."""
    family, config, where = describe(made.model, made.revision or None)
    model = skeleton(family, config)
    raw = raw_config(made, where)
    model.dtype = dtype_of(made, raw, kind)
    model.to(model.dtype)
    if how := how_stored(made.quantize, quantization_of(raw, where)[0], where):
        if made.shard:
            raise UserError(
                f"{made.model} is stored in {how}, and --shard lays whole weights over processes: give a model that is not quantised"
            )
        quantize_skeleton(model, how)
    for name, folder in made.load.items():
        attach(model, read_adapter(model, Path(folder))[0], name)
    if made.continue_from:
        shape_of_start(model, Path(made.continue_from))
    else:
        attach(
            model,
            resolve(None, **{key: value for key, value in made.adapter.items() if key != "preset"}),
        )
    use(model, in_order(model), train=["default"])
    return model


def raw_config(made: Settings, where: str) -> dict:
    """What stands where `describe` found the configuration."""
    return read_json(Path(where)) if where.endswith(".json") else find(made.model).config


def batches_of(made: Settings, processes: int = 1) -> int:
    """Micro-batches of a step in each of so many processes: in the one that has most."""
    return math.ceil(math.ceil(made.train.batch_size / made.train.micro_batch_size) / processes)


def planned(made: Settings, target: Target) -> Planned:
    """Take a step, dry, and lay the blocks over the devices. Raises UserError."""
    model = with_adapter(made, target.kind)
    step = training_step(
        model, made.train, target.length, target.labelled, target.kind, target.processes
    )
    if made.shard:
        step = step.in_parts(matrices_of(model, target.kind), target.processes)
    blocks = made.layers_per_device or blocks_on(step, batches_of(made), target)
    if len(blocks) != len(target.devices) or sum(blocks) != len(model.blocks):
        raise UserError(
            f"layers_per_device = {blocks}: the plan is for {len(target.devices)} devices and the model has {len(model.blocks)} layers"
        )
    return Planned(
        model, step, blocks, stage_of(blocks), step.phase.peak(stage_of(blocks), batches_of(made))
    )


def blocks_on(step: Step, batches: int, target: Target) -> list[int]:
    """How many blocks go on each device: as many on each, so that all have as much to do; or, where that does not fit into the memory given, so that
    the largest share of it that any device has to have in training is least."""
    many, devices = len(step.weights) - 2, len(target.devices)
    even = [
        many // devices + (number < many % devices) for number in range(devices)
    ]  # the first has no head to compute
    if min(even) > 0 and (
        target.memory is None or fits(step.phase.peak(stage_of(even), batches), target)
    ):
        return even
    alone = step.phase.peak(list(range(len(step.weights))))
    room = [usable(one) for one in target.memory] if target.memory else [1] * len(target.devices)
    blocks = balance(
        [static + kept for static, kept in zip(step.static, step.phase.kept, strict=True)][1:-1],
        alone[0],
        alone[-1],
        room,
    )

    def largest(blocks: list[int]) -> float:
        return max(
            need / one
            for need, one in zip(step.phase.peak(stage_of(blocks), batches), room, strict=True)
        )

    share = largest(blocks)
    while True:  # devices in front keep more micro-batches than those behind: move blocks over a boundary, one by one, as long as that helps
        moves = [
            [*blocks[:i], blocks[i] + by, blocks[i + 1] - by, *blocks[i + 2 :]]
            for i in range(len(blocks) - 1)
            for by in (1, -1)
        ]
        better, moved = min(
            ((largest(one), one) for one in moves if min(one) > 0), default=(share, blocks)
        )
        if better >= share:
            return blocks
        share, blocks = better, moved


def layers_for(made: Settings, devices: list[torch.device]) -> list[int]:
    """How many layers a run that is about to begin puts on each of its devices: as planned against what is free there now. Empty, for a balance of the
    weights alone (model/devices.py), where a plan is not possible: devices of two kinds."""
    if len({device.type for device in devices}) > 1:
        return []
    free = None
    if devices[0].type == "cuda":
        free = [
            torch.cuda.mem_get_info(device)[0] + CONTEXT for device in devices
        ]  # what CUDA takes is gone from it already
        for device, size in zip(devices, free, strict=True):
            if usable(size) < 10**8:
                raise UserError(
                    f"{device} has {size_text(size - CONTEXT)} of memory left: something else is using it"
                )
    return planned(
        made, Target([str(device) for device in devices], free, made.train.cutoff, 1.0)
    ).blocks


def stage_of(blocks: list[int]) -> list[int]:
    """The device of each place: the embedding, every block, the head."""
    return [
        0,
        *(device for device, many in enumerate(blocks) for _ in range(many)),
        len(blocks) - 1,
    ]


def fits(need: list[int], target: Target) -> bool:
    return all(size <= usable(memory) for size, memory in zip(need, target.memory, strict=True))


def advice(made: Settings, found: Planned, target: Target) -> str | None:
    """What to change so that the run fits, as options of the command line, found by planning it; None: nothing that is tried here.

    In this order: recomputation, fewer rows at once; the same with weights in fewer bits; all that with a second card, or, of several processes, with the
    blocks laid over them, and with more of them.
    """
    _, _, path = describe(made.model, made.revision or None)
    stays = quantization_of(raw_config(made, path), path)[0]  # a folder that is quantised already
    for where, base, more in more_room(made, found, target):
        for how in [base.quantize] if base.shard or stays else fewer_bits(base):
            stored = replace(base, quantize=how)
            least = sum(
                tensor.nbytes for tensor in everything(with_adapter(stored, target.kind)).values()
            ) + sum(found.step.optimizer)
            if not base.shard and least > sum(map(usable, where.memory)):
                continue  # not even without activations
            trains = next(
                (
                    (one, tried)
                    for one in for_training(stored)
                    if fits((tried := planned(one, where)).training, where)
                ),
                None,
            )
            whole = trains and next(
                (
                    one
                    for one in for_answers(trains[0])
                    if fits(trains[1].answering(one, where), where)
                ),
                None,
            )
            if whole:
                return " ".join([*options_for(made, whole), *more])
    return None


def more_room(
    made: Settings, found: Planned, target: Target
) -> Iterator[tuple[Target, Settings, list[str]]]:
    """Where the run may go: as it is, then to more devices; and what to say of that."""
    yield target, made, []
    if target.processes == 1 and len(target.devices) == 1 and target.kind == "cuda":
        yield (
            replace(target, devices=["cuda:0", "cuda:1"], memory=target.memory * 2),
            made,
            ["and a second card like it"],
        )
    if target.processes > 1 and not found.model.quantize:  # whole weights alone can be shared
        if not made.shard:
            yield target, replace(made, shard=True), ["--shard"]
        for times in (2, 4, 8):
            many = times * target.processes
            yield (
                replace(target, processes=many),
                replace(made, shard=True),
                ["--shard"] * (not made.shard) + [f"--processes {many}"],
            )
