"""What a run prints above its progress bars and writes down: the `run` section of its adapter's
file, and result.json."""

import resource
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import torch
from torch import nn

from data.leakage import seen_sets
from data.prompts import AUTO
from eval.score import scores, tables
from experiments.base import toy_lines
from experiments.comparable import compare, conditions_of
from experiments.history import history_text, short
from experiments.prepare import Prepared
from model.language import LanguageModel
from model.quantize import quantized_weights
from model.sites import base_parameters
from train.loop import Outcome

if TYPE_CHECKING:
    from experiments.run import Result


def announce(run: Prepared, template_setting: str) -> None:
    """Print model, adapter, data and prompt. template_setting: as given, perhaps "auto"."""
    s, model, data, start = run.settings, run.model, run.data, run.start
    base, trained = count_base(model), count(run.trained)
    stored = f" and {model.quantize}" if model.quantize else ""
    lines = [
        f"model    {s.model}: {model.config.model_type}, {base:,} parameters, frozen, "
        f"{s.dtype}{stored} on {s.device}",
        *indented(toy_lines(s.model)),
        *indented(f"layers {x.first} to {x.end - 1} on {x.device}" for x in model.stages),
        *(f"loaded   {name}, frozen, from {folder}" for name, folder in s.load.items()),
        f"adapter  {run.preset or run.config.kind} at {run.config.place()}: {trained:,} "
        f"parameters, {100 * trained / base:.2f}% of the model",
    ]
    if s.teacher:
        lines += indented([f"learns what {s.teacher} gives, by KL divergence per labelled token"])
    if start:
        before = [f"trained before on {history_text(entry)}" for entry in start.history]
        further = f"trained further from {s.continue_from}"
        lines += indented([further, *before, *start.lines])
    tests = ", ".join(f"{name} ({len(rows)})" for name, rows in data.tests.items()) or "none"
    rows = f"{len(data.train):,} row{'s' * (len(data.train) != 1)}"
    rows = "plain text" if data.is_text else rows
    lines.append(f"data     {data.name}: {rows} to train on, tests {tests}")
    if not data.is_text:
        chosen = template_setting == AUTO and run.template.chat
        why = " (the tokenizer's own, as the data is yours)" if chosen else ""
        lines.append(f"prompt   {s.template}{why}; answers {s.eval.decoding}")
    print("\n".join([*lines, *indented(run.lines)]))


def indented(lines) -> list[str]:
    return [f"         {line}" for line in lines]


def count(parameters: dict[str, nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters.values())


def count_base(model: LanguageModel) -> int:
    """Parameters of the model without its adapters."""
    return count(base_parameters(model)) + quantized_weights(model)


def peak_memory(model: LanguageModel) -> int:
    """Most bytes in use so far: of the model's GPUs, or of this process on a CPU."""
    if model.device.type == "cuda":
        devices = {stage.device for stage in model.stages} or {model.device}
        return sum(torch.cuda.max_memory_allocated(device) for device in devices)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def run_section(job: Prepared, outcome: Outcome) -> dict:
    """The `run` section of the adapter's file: what it was trained on."""
    s, data = job.settings, job.data
    prompt = {"template": job.template.name, "template_text": job.template.table()}
    section = {
        "model": s.model,
        "data": s.data,
        **({} if data.is_text else prompt),
        "seed": s.seed,
        "adapter": job.preset,
        "columns": s.columns,
        "test_share": 0.0 if s.tests else s.test_share,
        "only_right": s.only_right,
        "prompt_weight": s.train.prompt_weight,
        "data_fingerprint": data.fingerprint,
        "quantize": job.model.quantize,
        "revision": s.revision,
        "steps": outcome.adapter_step,
    }
    if job.start:
        section["history"] = job.history
    if job.loaded:
        section["loaded"] = {name: short(run) for name, run in job.loaded.items()}
    return section


def facts_of(job: Prepared, outcome: Outcome, result: "Result", world: int, seconds: int) -> dict:
    """The content of result.json."""
    s = job.settings
    seen = (name for leaks in (job.leaks, *job.earlier) for name in seen_sets(leaks))
    return {
        "model": s.model,
        "quantize": job.model.quantize,
        "adapter": job.preset,
        "continued_from": s.continue_from,
        "teacher": s.teacher,
        "history": job.history,
        "data": s.data,
        "seed": s.seed,
        "processes": world,
        "adapter_step": outcome.adapter_step,
        "validation": outcome.validation,
        "steps": outcome.step,
        "skipped_steps": outcome.skipped,
        "seconds": seconds,
        "peak_memory_bytes": peak_memory(job.model),
        "rows_cut_off": job.encoded.cut,
        "rows_left_out": len(job.data.left_out) + job.encoded.refused + job.share.refused,
        "held_out_loss": {} if s.teacher else result.loss,
        "divergence": result.loss if s.teacher else {},  # from the teacher
        "trainable_parameters": count(job.trained),
        "parameters": count_base(job.model),
        "trained_on_test": list(dict.fromkeys(seen)),
        "published": [c.facts() for c in compare(conditions_of(s), scores(result.after))],
        "decoding": s.eval.decoding,
        "before": tables(result.before),
        "after": tables(result.after),
        **asdict(result.verdict),  # problems, notes, status
    }
