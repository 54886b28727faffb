"""What a run would need, from config.json or the registry alone: nothing is downloaded but, at most, the configuration.

The step that the run would take is taken, on a model without memory (train/plan/dry_run.py); nothing here knows a formula for it.
"""

import argparse
import math

import torch
from torch import nn

from adapters.attach import adapter_names, adapters_named
from adapters.formats.folders import native_tensors
from adapters.show import trained
from experiments.continued import settings_to_continue
from experiments.layout import Planned, Target, advice, batches_of, planned
from experiments.options import MODEL_OPTIONS, given, loads_of
from files.errors import UserError
from model.show import count
from train.base import check_together
from train.pipeline import orders, utilisation
from train.plan.advice import check_room, measured_rate, parse_memory, parse_rate, usable
from train.plan.dry_run import gathered, matrices_of
from train.settings import Settings, settings


def target_of(options: argparse.Namespace, made: Settings) -> Target:
    """The devices of --memory, --devices, --device and the settings. Raises UserError."""
    memory = parse_memory(options.memory) if options.memory else None
    check_room(memory or [])
    given = (
        made.device
        if made.device != "auto"
        else "cuda"
        if memory or torch.cuda.is_available()
        else "cpu"
    )
    named = given.split(",")
    if memory and len(memory) > 1 and named == ["cuda"]:
        named = [f"cuda:{number}" for number in range(len(memory))]
    for name in named:
        try:
            found = torch.device(name).type
        except RuntimeError:
            found = name
        if found not in ("cpu", "cuda") or found != torch.device(named[0]).type:
            raise UserError(
                f"device {name!r:.50}: a plan is for cpu, for cuda, or for several cuda devices, cuda:0,cuda:1"
            )
    if not 1 <= options.processes <= 2**14:
        raise UserError(
            f"--processes {options.processes} should be a number of processes, 1 or more"
        )
    if made.shard and options.processes == 1:
        raise UserError(
            "--shard lays the blocks over several processes: say how many, --processes 8"
        )
    check_together(made, [torch.device(name) for name in named], options.processes)
    if memory and len(memory) != len(named):
        raise UserError(
            f"--memory names {len(memory)} devices and there are {len(named)}: {', '.join(named)}"
        )
    length = made.train.cutoff if options.length is None else options.length
    if not 2 <= length <= 2**20:
        raise UserError(f"--length {length} should be the tokens of a row, 2 or more")
    if not 0 < options.labelled <= 1:
        raise UserError(f"--labelled {options.labelled} should be a share, above 0 and at most 1")
    return Target(named, memory, length, options.labelled, options.processes)


def run_of(options: argparse.Namespace) -> Settings:
    """The settings that the options of plan or show stand for. Raises UserError."""
    chosen = given(options, tuple(key for key in MODEL_OPTIONS if hasattr(options, key)))
    source = getattr(options, "continue_from", None)
    if not options.config and source is None:
        chosen.setdefault("model", "llama-7b")
    if options.adapter:
        chosen["adapter"] = {"preset": options.adapter}
    if getattr(options, "load", None):
        chosen["load"] = loads_of(options.load)
    recipe = getattr(options, "recipe", None)
    if source is not None:
        return settings_to_continue(source, options.config, recipe, chosen, options.set)
    return settings(options.config, recipe, chosen, options.set)


def plan(options: argparse.Namespace) -> dict:
    """The plan as a table of facts; bytes, seconds, floating-point operations. Raises UserError."""
    made = run_of(options)
    target = target_of(options, made)
    rate = parse_rate(options.flops) if options.flops else None
    if options.rows is not None and options.rows < 1:
        raise UserError(f"--rows {options.rows} should be the rows to train on, 1 or more")
    found = planned(made, target)
    facts = {
        **adapter_facts(found.model, made),
        **run_facts(found, made, target),
        **time_facts(found, made, target, options, rate),
    }
    if target.memory:
        facts["fits"] = all(one["fits"] for one in facts["devices"])
        facts["advice"] = None if facts["fits"] else advice(made, found, target)
    return facts


def adapter_facts(model: nn.Module, made: Settings) -> dict:
    """Counts of the model and its adapter, which depend on nothing else."""
    adapter = trained(model)
    base = count(model) - sum(trained(model, name) for name in adapter_names(model))
    adapters = adapters_named(model, "default")
    config = next(iter(adapters.values())).config
    stored = sum(tensor.numel() for tensor in native_tensors(config, adapters).values())
    return {
        "model": made.model,
        "adapter": config.kind,
        "where": config.place(),
        "parameters": base,
        "trainable_parameters": adapter,
        "trainable_share": adapter / base,
        "weight_bytes_16_bit": 2 * base,
        "adapter_file_bytes": 4 * stored,
        "trained_state_bytes": 16 * adapter,
    }


def run_facts(found: Planned, made: Settings, target: Target) -> dict:
    """What each device holds."""
    step, answering = found.step, found.answering(made, target)
    parts = {
        name: found.by_device(getattr(step, name))
        for name in ("weights", "adapter", "gradients", "optimizer")
    }
    kept = found.by_device(step.phase.kept)
    devices = []
    for number, name in enumerate(target.devices):
        one = {f"{key}_bytes": sizes[number] for key, sizes in parts.items()}
        one |= {
            "activation_bytes": found.training[number] - sum(one.values()),
            "kept_by_forward_bytes": kept[number],
            "training_bytes": found.training[number],
            "answering_bytes": answering[number],
        }
        if made.shard:
            one["gathered_bytes"] = gathered(matrices_of(found.model, target.kind))
        if target.memory:
            room = usable(target.memory[number])
            left = room - max(found.training[number], answering[number])
            one |= {
                "memory_bytes": target.memory[number],
                "usable_bytes": room,
                "left_bytes": left,
                "fits": left >= 0,
            }
        devices.append({"device": name, "blocks": found.blocks[number], **one})
    return {
        "dtype": str(found.model.dtype).removeprefix("torch."),
        "quantize": found.model.quantize,
        "length": target.length,
        "labelled": target.labelled,
        "batch_size": made.train.batch_size,
        "micro_batch_size": made.train.micro_batch_size,
        "checkpointing": made.train.checkpointing,
        "processes": target.processes,
        "shard": made.shard,
        "answers_at_once": made.eval.batch_size,
        "max_new_tokens": made.eval.max_new_tokens,
        "devices": devices,
    }


def time_facts(
    found: Planned, made: Settings, target: Target, options: argparse.Namespace, rate: float | None
) -> dict:
    """How much a step computes, and how long it takes at the rate that was given or measured."""
    s = made.train
    flops = round(found.step.phase.flops * s.batch_size / min(s.micro_batch_size, s.batch_size))
    mine = (
        flops * batches_of(made, target.processes) / batches_of(made)
    )  # of the process that has most
    if options.measure:
        if target.kind == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "--measure needs the device of the plan, and torch sees no CUDA device here: give the rate with --flops 150T"
            )
        rate = measured_rate(torch.device(target.devices[0]), found.model.dtype)
    steps = s.max_steps or (
        math.ceil(options.rows / s.batch_size) * s.epochs if options.rows else None
    )
    facts = {
        "flops_per_step": flops,
        "flops_per_second": rate,
        "steps": steps,
        "seconds_per_step": None,
        "seconds": None,
    }
    if rate:
        many = len(target.devices)
        busy = (
            utilisation(orders(many, batches_of(made)), lambda one: 1.0 if one.way == "F" else 2.0)
            if many > 1
            else 1.0
        )
        facts["seconds_per_step"] = mine / (rate * many * busy)
        facts["seconds"] = facts["seconds_per_step"] * steps if steps else None
    return facts
