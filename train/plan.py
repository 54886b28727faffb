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
from model.errors import UserError
from model.files import read_json
from model.load import describe, skeleton
from model.quantize import quantize_skeleton
from model.show import count
from model.split import balance
from train.dry_run import Phase, Step, answering, training_step
from train.experiment import DTYPES
from train.fit import Change, first_that_fits, measured_rate, parse_memory, parse_rate, usable
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
    dtype: torch.dtype
    step: Step
    answer: Phase
    blocks: list[int]  # on each device
    stage: list[int]  # the device of each place: the embedding, every block, the head
    need: list[int]  # bytes that each device has to have for tensors: the larger of training and answering

    def by_device(self, sizes: list[int]) -> list[int]:
        return [sum(size for size, one in zip(sizes, self.stage, strict=True) if one == device) for device in range(len(self.blocks))]


def target_of(options: argparse.Namespace, made: Settings) -> Target:
    """The devices of --memory, --devices, --device and the settings. Raises UserError."""
    memory = parse_memory(options.memory) if options.memory else None
    named = options.devices.split(",") if options.devices else None
    if named is None:
        kind = made.device if made.device != "auto" else "cuda" if memory or torch.cuda.is_available() else "cpu"
        named = [kind] if not memory or len(memory) == 1 else [f"{kind}:{number}" for number in range(len(memory))]
    for name in named:
        try:
            found = torch.device(name).type
        except RuntimeError:
            found = name
        if found not in ("cpu", "cuda") or found != torch.device(named[0]).type:
            raise UserError(f"device {name!r:.50}: a plan is for cpu, for cuda, or for several cuda devices, cuda:0,cuda:1")
    if memory and len(memory) != len(named):
        raise UserError(f"--memory names {len(memory)} devices and there are {len(named)}: {', '.join(named)}")
    length = made.train.cutoff if options.length is None else options.length
    if not 2 <= length <= 2**20:
        raise UserError(f"--length {length} should be the tokens of a row, 2 or more")
    if not 0 < options.labelled <= 1:
        raise UserError(f"--labelled {options.labelled} should be a share, above 0 and at most 1")
    return Target(named, memory, length, options.labelled)


def dtype_of(made: Settings, where: str, kind: str) -> torch.dtype:
    """That of the base on a device: as train/experiment.py loads it. Where nothing says what the checkpoint has, float16."""
    if made.dtype not in ("auto", *DTYPES):
        raise UserError(f"dtype {made.dtype!r} is not one of auto, {', '.join(DTYPES)}")
    if made.dtype != "auto":
        return DTYPES[made.dtype]
    raw = read_json(Path(where)) if where.endswith(".json") else {}
    dtype = DTYPES.get(str(raw.get("torch_dtype") or raw.get("dtype")), torch.float16)
    return torch.float32 if dtype == torch.float16 and kind == "cpu" else dtype


def with_adapter(made: Settings, dtype: torch.dtype) -> nn.Module:
    """The model of the settings without memory, its adapter attached. Raises UserError."""
    if made.load:
        raise UserError(f"a plan does not know the adapters to load ({', '.join(made.load)}); plan without them")
    family, config, _ = describe(made.model, made.revision or None)
    model = skeleton(family, config).to(dtype)
    model.dtype = dtype
    if made.quantize:
        quantize_skeleton(model, made.quantize)
    attach(model, resolve(None, **{key: value for key, value in made.adapter.items() if key != "preset"}))
    return model


def planned(made: Settings, target: Target) -> Planned:
    """Take a step and give an answer, dry, and lay the blocks over the devices. Raises UserError."""
    dtype = dtype_of(made, describe(made.model, made.revision or None)[2], target.kind)
    model = with_adapter(made, dtype)
    step = training_step(model, made.train, target.length, target.labelled, target.kind)
    answer = answering(model, made.eval, target.length, target.kind)
    places, batches = len(model.blocks) + 2, math.ceil(made.train.batch_size / made.train.micro_batch_size)
    alone = step.phase.peak(list(range(places)))
    kept = min(batches, len(target.devices))
    sizes = [sum(part[place] for part in (step.weights, step.adapter, step.gradients, step.optimizer)) + kept * step.phase.kept[place]
             for place in range(places)]
    blocks = balance(sizes[1:-1], alone[0], alone[-1], [usable(one) for one in target.memory] if target.memory else [1] * len(target.devices))
    stage = [0, *(device for device, many in enumerate(blocks) for _ in range(many)), len(blocks) - 1]
    need = [max(pair) for pair in zip(step.phase.peak(stage, batches), answer.peak(stage), strict=True)]
    return Planned(model, dtype, step, answer, blocks, stage, need)


def fits(found: Planned, target: Target) -> bool:
    return all(need <= usable(memory) for need, memory in zip(found.need, target.memory, strict=True))


def advice(made: Settings, target: Target) -> str | None:
    """What to change so that the run fits, as options of the command line; None: nothing that is known here."""
    def tried(change: Change) -> bool:
        where = replace(target, devices=[f"{target.kind}:{number}" for number in range(2)], memory=target.memory * 2) if change.more_cards else target
        if change.more_cards and (len(target.devices) > 1 or target.kind == "cpu"):
            return False
        return fits(planned(change.made, where), where)

    change = first_that_fits(made, tried)
    return None if change is None else " ".join(change.words) + (" and a second card like it" if change.more_cards else "")


def plan(options: argparse.Namespace) -> dict:
    """The plan as a table of facts; bytes, seconds, floating-point operations. Raises UserError."""
    chosen = {key: getattr(options, key) for key in ("revision", "device", "dtype", "quantize") if getattr(options, key) is not None}
    if options.model or not options.config:
        chosen["model"] = options.model or "llama-7b"
    if options.adapter:
        chosen["adapter"] = {"preset": options.adapter}
    made = settings(options.config, options.recipe, chosen, options.set)
    target = target_of(options, made)
    rate = parse_rate(options.flops) if options.flops else None
    if options.rows is not None and options.rows < 1:
        raise UserError(f"--rows {options.rows} should be the rows to train on, 1 or more")
    found = planned(made, target)
    facts = {**adapter_facts(found.model, made), **run_facts(found, made, target), **time_facts(found, made, target, options, rate)}
    if target.memory:
        facts["fits"] = fits(found, target)
        facts["advice"] = None if facts["fits"] else advice(made, target)
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
    step, batches = found.step, math.ceil(made.train.batch_size / made.train.micro_batch_size)
    parts = {name: found.by_device(getattr(step, name)) for name in ("weights", "adapter", "gradients", "optimizer")}
    training, answering = step.phase.peak(found.stage, batches), found.answer.peak(found.stage)
    kept = found.by_device(step.phase.kept)
    devices = []
    for number, name in enumerate(target.devices):
        one = {f"{key}_bytes": sizes[number] for key, sizes in parts.items()}
        one |= {"activation_bytes": training[number] - sum(one.values()), "kept_by_forward_bytes": kept[number],
                "training_bytes": training[number], "answering_bytes": answering[number]}
        if target.memory:
            room = usable(target.memory[number])
            one |= {"memory_bytes": target.memory[number], "usable_bytes": room, "left_bytes": room - found.need[number], "fits": found.need[number] <= room}
        devices.append({"device": name, "blocks": found.blocks[number], **one})
    return {
        "dtype": str(found.dtype).removeprefix("torch."), "quantize": made.quantize, "length": target.length, "labelled": target.labelled,
        "batch_size": made.train.batch_size, "micro_batch_size": made.train.micro_batch_size, "checkpointing": made.train.checkpointing,
        "answers_at_once": made.eval.batch_size, "max_new_tokens": made.eval.max_new_tokens, "devices": devices,
    }


def time_facts(found: Planned, made: Settings, target: Target, options: argparse.Namespace, rate: float | None) -> dict:
    """How much a step computes, and how long it takes at the rate that was given or measured."""
    s = made.train
    batches = math.ceil(s.batch_size / s.micro_batch_size)
    flops = round(found.step.phase.flops * s.batch_size / min(s.micro_batch_size, s.batch_size))
    if options.measure:
        if target.kind == "cuda" and not torch.cuda.is_available():
            raise UserError("--measure needs the device of the plan, and torch sees no CUDA device here: give the rate with --flops 150T")
        rate = measured_rate(torch.device(target.devices[0]), found.dtype)
    steps = s.max_steps or (math.ceil(options.rows / s.batch_size) * s.epochs if options.rows else None)
    facts = {"flops_per_step": flops, "flops_per_second": rate, "steps": steps, "seconds_per_step": None, "seconds": None}
    if rate:
        many = len(target.devices)
        busy = utilisation(orders(many, batches), lambda one: 1.0 if one.way == "F" else 2.0) if many > 1 else 1.0
        facts["seconds_per_step"] = flops / (rate * many * busy)
        facts["seconds"] = facts["seconds_per_step"] * steps if steps else None
    return facts
