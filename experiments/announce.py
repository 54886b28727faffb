"""What a run prints above its progress bars."""

import resource
import sys

import torch
from torch import nn

from data.prompts import AUTO
from experiments.base import toy_lines
from experiments.history import history_lines
from experiments.prepare import Prepared
from model.language import LanguageModel
from model.quantize import quantized_weights
from model.sites import base_parameters


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
        before = [f"trained before on {line}" for line in history_lines(start.history)]
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
