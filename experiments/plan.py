"""What a run would need: memory of each device, FLOPs and time, before anything is downloaded.

The step of the run is taken on torch's meta device (train/plan/dry_run.py). Only config.json is
read, or, for a model of the registry, not even that.
"""

import math
import re

import torch

from adapters.attach import adapter_names, adapters_named
from adapters.formats.folders import native_tensors
from adapters.show import trained
from experiments.base import check_together, dtype_name
from experiments.comparable import compare, conditions_of
from experiments.fitting import advice
from experiments.layout import Planned, Target, batches_of, planned
from files.errors import UserError
from model.language import LanguageModel
from model.show import count
from train.pipeline import orders, utilisation
from train.plan.advice import check_room, measured_rate, own_use, parse_memory, parse_rate
from train.plan.dry_run import matrices_of
from train.plan.phases import gathered
from train.settings import Settings

DEVICE = r"(cpu|cuda)(:(0|[1-9][0-9]{0,8}))?"  # what torch takes


def plan_run(
    settings: Settings,
    *,
    memory: str | None = None,
    processes: int = 1,
    length: int | None = None,
    labelled: float = 1.0,
    rows: int | None = None,
    flops: str | None = None,
    measure: bool = False,
) -> dict:
    """What a run with these settings would need, as a table of facts in bytes, seconds and FLOPs.

    memory: of each device, such as "24GB" or "24GB,24GB"; the plan then says whether the run fits
    and, if not, which options make it fit. processes: as torchrun would start them, each with one
    device. length: tokens of a row and of a prompt (None: `train.cutoff`). labelled: share of a
    row's tokens that have a label. rows: rows to train on, for the time of the whole run.
    flops: floating-point operations per second, such as "150T"; measure: measure them here.

    Raises UserError for a value out of range, or devices that do not match the settings.
    """
    target = target_of(settings, memory, processes, length, labelled)
    rate = parse_rate(flops) if flops else None
    if rows is not None and rows < 1:
        raise UserError(f"--rows {rows} should be the rows to train on, 1 or more")
    plan = planned(settings, target)
    if measure:
        rate = measured_rate_of(target, plan.model.dtype)
    facts = {
        **adapter_facts(plan.model, settings),
        **run_facts(plan, settings, target),
        **time_facts(plan, settings, target, rows, rate),
    }
    facts["published"] = [compared.facts() for compared in compare(conditions_of(settings))]
    if target.memory:
        facts["fits"] = all(device["fits"] for device in facts["devices"])
        facts["advice"] = None if facts["fits"] else advice(settings, plan, target)
    return facts


def target_of(
    s: Settings, memory: str | None, processes: int, length: int | None, labelled: float
) -> Target:
    """The devices of the plan, from `memory` and the settings. Raises UserError."""
    sizes = parse_memory(memory) if memory else None
    default = "cuda" if sizes or torch.cuda.is_available() else "cpu"
    names = (default if s.device == "auto" else s.device).split(",")
    if sizes and len(sizes) > 1 and names == ["cuda"]:
        names = [f"cuda:{number}" for number in range(len(sizes))]
    kinds = {name.partition(":")[0] for name in names}
    if len(kinds) > 1 or not all(re.fullmatch(DEVICE, name) for name in names):
        raise UserError(
            f"device {','.join(names)!r:.50}: a plan is for cpu, for cuda, or for several cuda "
            "devices, cuda:0,cuda:1"
        )
    if not 1 <= processes <= 2**14:
        raise UserError(f"--processes {processes} should be a number of processes, 1 or more")
    if s.shard and processes == 1:
        raise UserError(
            "--shard lays the blocks over several processes: say how many, --processes 8"
        )
    check_together(s, [torch.device(name) for name in names], processes)
    check_room(sizes or [], *kinds, processes)
    if sizes and len(sizes) != len(names):
        raise UserError(
            f"--memory: {len(sizes)} given, for the devices of the plan: {', '.join(names)}"
        )
    length = s.train.cutoff if length is None else length
    if not 2 <= length <= 2**20:
        raise UserError(f"--length {length} should be the tokens of a row, 2 or more")
    if not 0 < labelled <= 1:
        raise UserError(f"--labelled {labelled} should be a share, above 0 and at most 1")
    return Target(names, sizes, length, labelled, processes)


def measured_rate_of(target: Target, dtype: torch.dtype) -> float:
    """FLOPs per second of the plan's first device. Raises UserError where this machine lacks it."""
    if target.kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--measure needs the device of the plan, and torch sees no CUDA device here: "
            "give the rate with --flops 150T"
        )
    return measured_rate(torch.device(target.devices[0]), dtype)


def adapter_facts(model: LanguageModel, s: Settings) -> dict:
    """Parameters and bytes of the model and its adapter, on whatever device."""
    adapter = trained(model)
    base = count(model) - sum(trained(model, name) for name in adapter_names(model))
    adapters = adapters_named(model, "default")
    config = next(iter(adapters.values())).config
    stored = sum(tensor.numel() for tensor in native_tensors(config, adapters).values())
    return {
        "model": s.model,
        "adapter": config.kind,
        "where": config.place(),
        "parameters": base,
        "trainable_parameters": adapter,
        "trainable_share": adapter / base,
        "weight_bytes_16_bit": 2 * base,
        "adapter_file_bytes": 4 * stored,
        "trained_state_bytes": 16 * adapter,  # weights, gradients and AdamW's moments
    }


def run_facts(plan: Planned, s: Settings, target: Target) -> dict:
    """What each device holds."""
    step, answering = plan.step, plan.answering(s, target)
    parts = {
        name: plan.by_device(getattr(step, name))
        for name in ("weights", "adapter", "gradients", "optimizer")
    }
    kept = plan.by_device(step.phase.kept)
    packed = plan.packed(s, target)
    devices = []
    for number, name in enumerate(target.devices):
        device = {f"{key}_bytes": sizes[number] for key, sizes in parts.items()}
        device |= {
            "activation_bytes": plan.training[number] - sum(device.values()),
            "kept_by_forward_bytes": kept[number],
            "training_bytes": plan.training[number],
            "answering_bytes": answering[number],
        }
        if packed[number] and s.eval.decode_memory != "plain":
            device["packed_bytes"] = packed[number]
        if s.shard:
            device["gathered_bytes"] = gathered(matrices_of(plan.model, target.kind))
        if target.memory:
            room = target.room[number]
            left = room - max(plan.training[number], answering[number])
            device |= {
                "memory_bytes": target.memory[number],
                "usable_bytes": room,
                "left_bytes": left,
                "fits": left >= 0,
            }
        devices.append({"device": name, "blocks": plan.blocks[number], **device})
    return {
        "own_use_bytes": own_use(target.kind, target.processes),
        "host_bytes": step.host,
        "dtype": dtype_name(plan.model.dtype),
        "quantize": plan.model.quantize,
        "length": target.length,
        "labelled": target.labelled,
        "batch_size": s.train.batch_size,
        "micro_batch_size": s.train.rows_at_once(target.length),
        "checkpointing": s.train.checkpointing,
        "processes": target.processes,
        "shard": s.shard,
        "epochs": s.train.epochs,
        "max_steps": s.train.max_steps,  # above 0: in place of the epochs
        "learning_rate": s.train.learning_rate,
        "prompt_weight": s.train.prompt_weight,
        "validation_rows": s.train.validation_rows,
        "beams": s.eval.beams,
        "answers_at_once": s.eval.batch_size,
        "max_new_tokens": s.eval.max_new_tokens,
        "decode_memory": s.eval.decode_memory,
        "devices": devices,
    }


def time_facts(
    plan: Planned, s: Settings, target: Target, rows: int | None, rate: float | None
) -> dict:
    """The FLOPs of a step, and the seconds at `rate` FLOPs per second where one is known."""
    train = s.train
    rows_at_once = train.rows_at_once(target.length)
    flops = round(plan.step.phase.flops * train.batch_size / rows_at_once)
    steps = train.max_steps or (rows and math.ceil(rows / train.batch_size) * train.epochs)
    seconds = None
    if rate:
        # of the process that has most micro-batches
        share = batches_of(s, target.length, target.processes) / batches_of(s, target.length)
        devices = len(target.devices)
        busy = 1.0
        if devices > 1:
            schedule = orders(devices, batches_of(s, target.length))
            busy = utilisation(schedule, lambda work: 1.0 if work.way == "F" else 2.0)
        seconds = flops * share / (rate * devices * busy)
    return {
        "flops_per_step": flops,
        "flops_per_second": rate,
        "steps": steps,
        "seconds_per_step": seconds,
        "seconds": seconds * steps if seconds and steps else None,
    }
