"""What a run would need, from config.json or the registry alone: nothing is downloaded but, at most, the configuration.

The step that the run would take is taken, on a model without memory (train/dry_run.py); nothing here knows a formula for it.
"""

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from adapters import attach
from adapters.attach import adapters_named
from adapters.config import resolve
from adapters.files import native_tensors
from adapters.show import trained
from model.config import describe, skeleton
from model.errors import UserError
from model.files import read_json
from model.quantize import how_stored, quantization_of, quantize_skeleton
from model.show import count, size_text
from model.split import balance
from train.base import DTYPES, check_together
from train.dry_run import Step, answer, everything, training_step
from train.fit import CONTEXT, check_room, fewer_bits, for_answers, for_training, measured_rate, options_for, parse_memory, parse_rate, usable
from train.options import MODEL_OPTIONS, given
from train.pipeline import orders, utilisation
from train.settings import Settings, settings


@dataclass(frozen=True)
class Target:
    """Where a run is to go: the names of its devices (all cpu or all cuda), their bytes if they are given, and what a row is taken to be."""

    devices: list[str]
    memory: list[int] | None
    length: int  # tokens of a row, and of a prompt
    labelled: float  # share of them with a label

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
        return answer(self.model, made.eval, target.length, target.kind).peak(self.stage)

    def by_device(self, sizes: list[int]) -> list[int]:
        return [sum(size for size, one in zip(sizes, self.stage, strict=True) if one == device) for device in range(len(self.blocks))]


def target_of(options: argparse.Namespace, made: Settings) -> Target:
    """The devices of --memory, --devices, --device and the settings. Raises UserError."""
    memory = parse_memory(options.memory) if options.memory else None
    check_room(memory or [])
    given = made.device if made.device != "auto" else "cuda" if memory or torch.cuda.is_available() else "cpu"
    named = given.split(",")
    if memory and len(memory) > 1 and named == ["cuda"]:
        named = [f"cuda:{number}" for number in range(len(memory))]
    for name in named:
        try:
            found = torch.device(name).type
        except RuntimeError:
            found = name
        if found not in ("cpu", "cuda") or found != torch.device(named[0]).type:
            raise UserError(f"device {name!r:.50}: a plan is for cpu, for cuda, or for several cuda devices, cuda:0,cuda:1")
    if made.shard:
        raise UserError("a plan is for one process: --shard is not planned yet; what each of N processes holds of the blocks is 1/N of the weights said here")
    check_together(made, [torch.device(name) for name in named])
    if memory and len(memory) != len(named):
        raise UserError(f"--memory names {len(memory)} devices and there are {len(named)}: {', '.join(named)}")
    length = made.train.cutoff if options.length is None else options.length
    if not 2 <= length <= 2**20:
        raise UserError(f"--length {length} should be the tokens of a row, 2 or more")
    if not 0 < options.labelled <= 1:
        raise UserError(f"--labelled {options.labelled} should be a share, above 0 and at most 1")
    return Target(named, memory, length, options.labelled)


def run_of(options: argparse.Namespace) -> Settings:
    """The settings that the options of plan or show stand for. Raises UserError."""
    chosen = given(options, tuple(key for key in MODEL_OPTIONS if hasattr(options, key)))
    if not options.config:
        chosen.setdefault("model", "llama-7b")
    if options.adapter:
        chosen["adapter"] = {"preset": options.adapter}
    return settings(options.config, getattr(options, "recipe", None), chosen, options.set)


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
    if made.load:
        raise UserError(f"a plan does not know the adapters to load ({', '.join(made.load)}); plan without them")
    family, config, where = describe(made.model, made.revision or None)
    model = skeleton(family, config)
    raw = read_json(Path(where)) if where.endswith(".json") else {}  # of the registry it says shapes alone
    model.dtype = dtype_of(made, raw, kind)
    model.to(model.dtype)
    if how := how_stored(made.quantize, quantization_of(raw, where)[0], where):
        quantize_skeleton(model, how)
    attach(model, resolve(None, **{key: value for key, value in made.adapter.items() if key != "preset"}))
    return model


def batches_of(made: Settings) -> int:
    """Micro-batches of a step."""
    return math.ceil(made.train.batch_size / made.train.micro_batch_size)


def planned(made: Settings, target: Target) -> Planned:
    """Take a step, dry, and lay the blocks over the devices. Raises UserError."""
    model = with_adapter(made, target.kind)
    step = training_step(model, made.train, target.length, target.labelled, target.kind)
    blocks = made.layers_per_device or blocks_on(step, batches_of(made), target)
    if len(blocks) != len(target.devices) or sum(blocks) != len(model.blocks):
        raise UserError(f"layers_per_device = {blocks}: the plan is for {len(target.devices)} devices and the model has {len(model.blocks)} layers")
    return Planned(model, step, blocks, stage_of(blocks), step.phase.peak(stage_of(blocks), batches_of(made)))


def blocks_on(step: Step, batches: int, target: Target) -> list[int]:
    """How many blocks go on each device: as many on each, so that all have as much to do; or, where that does not fit into the memory given, so that
    the largest share of it that any device has to have in training is least."""
    many, devices = len(step.weights) - 2, len(target.devices)
    even = [many // devices + (number < many % devices) for number in range(devices)]  # the first has no head to compute
    if min(even) > 0 and (target.memory is None or fits(step.phase.peak(stage_of(even), batches), target)):
        return even
    alone = step.phase.peak(list(range(len(step.weights))))
    room = [usable(one) for one in target.memory] if target.memory else [1] * len(target.devices)
    blocks = balance([static + kept for static, kept in zip(step.static, step.phase.kept, strict=True)][1:-1], alone[0], alone[-1], room)

    def largest(blocks: list[int]) -> float:
        return max(need / one for need, one in zip(step.phase.peak(stage_of(blocks), batches), room, strict=True))

    share = largest(blocks)
    while True:  # devices in front keep more micro-batches than those behind: move blocks over a boundary, one by one, as long as that helps
        moves = [[*blocks[:i], blocks[i] + by, blocks[i + 1] - by, *blocks[i + 2 :]] for i in range(len(blocks) - 1) for by in (1, -1)]
        better, moved = min(((largest(one), one) for one in moves if min(one) > 0), default=(share, blocks))
        if better >= share:
            return blocks
        share, blocks = better, moved


def layers_for(made: Settings, devices: list[torch.device]) -> list[int]:
    """How many layers a run that is about to begin puts on each of its devices: as planned against what is free there now. Empty, for a balance of the
    weights alone (model/split.py), where a plan is not possible: devices of two kinds, adapters to load."""
    if made.load or len({device.type for device in devices}) > 1:
        return []
    free = None
    if devices[0].type == "cuda":
        free = [torch.cuda.mem_get_info(device)[0] + CONTEXT for device in devices]  # what CUDA takes is gone from it already
        for device, size in zip(devices, free, strict=True):
            if usable(size) < 10**8:
                raise UserError(f"{device} has {size_text(size - CONTEXT)} of memory left: something else is using it")
    return planned(made, Target([str(device) for device in devices], free, made.train.cutoff, 1.0)).blocks


def stage_of(blocks: list[int]) -> list[int]:
    """The device of each place: the embedding, every block, the head."""
    return [0, *(device for device, many in enumerate(blocks) for _ in range(many)), len(blocks) - 1]


def fits(need: list[int], target: Target) -> bool:
    return all(size <= usable(memory) for size, memory in zip(need, target.memory, strict=True))


def advice(made: Settings, found: Planned, target: Target) -> str | None:
    """What to change so that the run fits, as options of the command line, found by planning it; None: nothing that is tried here.

    In this order: recomputation, fewer rows at once; the same with weights in fewer bits; all that with a second card.
    """
    cards = [target]
    if len(target.devices) == 1 and target.kind == "cuda":
        cards.append(replace(target, devices=["cuda:0", "cuda:1"], memory=target.memory * 2))
    for where in cards:
        for how in fewer_bits(made):
            stored = replace(made, quantize=how)
            least = sum(tensor.nbytes for tensor in everything(with_adapter(stored, target.kind)).values()) + sum(found.step.optimizer)
            if least > sum(map(usable, where.memory)):
                continue  # not even without activations
            trains = next(((one, tried) for one in for_training(stored) if fits((tried := planned(one, where)).training, where)), None)
            whole = trains and next((one for one in for_answers(trains[0]) if fits(trains[1].answering(one, where), where)), None)
            if whole:
                return " ".join([*options_for(made, whole), *["and a second card like it"] * (where is not target)])
    return None


def plan(options: argparse.Namespace) -> dict:
    """The plan as a table of facts; bytes, seconds, floating-point operations. Raises UserError."""
    made = run_of(options)
    target = target_of(options, made)
    rate = parse_rate(options.flops) if options.flops else None
    if options.rows is not None and options.rows < 1:
        raise UserError(f"--rows {options.rows} should be the rows to train on, 1 or more")
    found = planned(made, target)
    facts = {**adapter_facts(found.model, made), **run_facts(found, made, target), **time_facts(found, made, target, options, rate)}
    if target.memory:
        facts["fits"] = all(one["fits"] for one in facts["devices"])
        facts["advice"] = None if facts["fits"] else advice(made, found, target)
    return facts


def adapter_facts(model: nn.Module, made: Settings) -> dict:
    """Counts of the model and its adapter, which depend on nothing else."""
    adapter = trained(model)
    base = count(model) - adapter
    adapters = adapters_named(model, "default")
    config = next(iter(adapters.values())).config
    stored = sum(tensor.numel() for tensor in native_tensors(config, adapters).values())
    return {
        "model": made.model, "adapter": config.kind, "where": config.place(),
        "parameters": base, "trainable_parameters": adapter, "trainable_share": adapter / base,
        "weight_bytes_16_bit": 2 * base, "adapter_file_bytes": 4 * stored, "trained_state_bytes": 16 * adapter,
    }


def run_facts(found: Planned, made: Settings, target: Target) -> dict:
    """What each device holds."""
    step, answering = found.step, found.answering(made, target)
    parts = {name: found.by_device(getattr(step, name)) for name in ("weights", "adapter", "gradients", "optimizer")}
    kept = found.by_device(step.phase.kept)
    devices = []
    for number, name in enumerate(target.devices):
        one = {f"{key}_bytes": sizes[number] for key, sizes in parts.items()}
        one |= {"activation_bytes": found.training[number] - sum(one.values()), "kept_by_forward_bytes": kept[number],
                "training_bytes": found.training[number], "answering_bytes": answering[number]}
        if target.memory:
            room = usable(target.memory[number])
            left = room - max(found.training[number], answering[number])
            one |= {"memory_bytes": target.memory[number], "usable_bytes": room, "left_bytes": left, "fits": left >= 0}
        devices.append({"device": name, "blocks": found.blocks[number], **one})
    return {
        "dtype": str(found.model.dtype).removeprefix("torch."), "quantize": found.model.quantize, "length": target.length, "labelled": target.labelled,
        "batch_size": made.train.batch_size, "micro_batch_size": made.train.micro_batch_size, "checkpointing": made.train.checkpointing,
        "answers_at_once": made.eval.batch_size, "max_new_tokens": made.eval.max_new_tokens, "devices": devices,
    }


def time_facts(found: Planned, made: Settings, target: Target, options: argparse.Namespace, rate: float | None) -> dict:
    """How much a step computes, and how long it takes at the rate that was given or measured."""
    s = made.train
    flops = round(found.step.phase.flops * s.batch_size / min(s.micro_batch_size, s.batch_size))
    if options.measure:
        if target.kind == "cuda" and not torch.cuda.is_available():
            raise UserError("--measure needs the device of the plan, and torch sees no CUDA device here: give the rate with --flops 150T")
        rate = measured_rate(torch.device(target.devices[0]), found.model.dtype)
    steps = s.max_steps or (math.ceil(options.rows / s.batch_size) * s.epochs if options.rows else None)
    facts = {"flops_per_step": flops, "flops_per_second": rate, "steps": steps, "seconds_per_step": None, "seconds": None}
    if rate:
        many = len(target.devices)
        busy = utilisation(orders(many, batches_of(made)), lambda one: 1.0 if one.way == "F" else 2.0) if many > 1 else 1.0
        facts["seconds_per_step"] = flops / (rate * many * busy)
        facts["seconds"] = facts["seconds_per_step"] * steps if steps else None
    return facts
