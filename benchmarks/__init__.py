"""Measurements of this machine: a table of them, which imports no torch."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass

from files.errors import UserError


@dataclass(frozen=True)
class Benchmark:
    """A function in benchmarks/ that yields lines of text as they come."""

    function: str  # module.function
    measures: str
    defaults: dict[str, str | int | bool]  # its parameters

    def lines(self, **options: str | int | bool) -> Iterator[str]:
        """Measure. Raises UserError for an option that does not apply, and for a number below 1."""
        for name, value in options.items():
            if name not in self.defaults:
                takes = ", ".join(f"--{option}" for option in self.defaults)
                raise UserError(f"--{name} does not apply to this case, which takes {takes}")
            if type(value) is int and value < 1:
                raise UserError(f"--{name} {value} must be at least 1")
        module, _, function = self.function.partition(".")
        measure = getattr(importlib.import_module(f"benchmarks.{module}"), function)
        given = self.defaults | options
        yield from measure(**{name.replace("-", "_"): value for name, value in given.items()})


MODEL = "smollm2-135m"
BENCHMARKS = {
    "table": Benchmark(
        "table.table_lines",
        "this project beside transformers + peft: training, decoding, evaluation, start",
        {"model": MODEL, "data-dir": "", "only": ""}
        | {"out": "runs/benchmark", "repeats": 3, "smoke": False},
    ),
    "gpu": Benchmark(
        "gpu.gpu_lines",
        "one card: tests, parity, 7B-shaped steps and decoding, float16, offload, repeated runs",
        {"out": "runs/benchmark-gpu", "only": "", "minutes": 8, "smoke": False},
    ),
    "growth": Benchmark(
        "growth.growth_lines",
        "how time and memory grow with length, batch, layers, adapters and rows: exponents",
        {"model": MODEL, "only": "", "out": "runs/benchmark-growth"}
        | {"repeats": 2, "dtype": "bfloat16", "smoke": False},
    ),
    "processes": Benchmark(
        "scaling.scaling_lines",
        "efficiency of several processes over gloo, for training and for evaluation",
        {"model": MODEL, "out": "runs/benchmark-processes"}
        | {"repeats": 3, "processes": 2, "smoke": False},
    ),
    "rates": Benchmark(
        "rates.rates_lines",
        "accuracy of every preset against the learning rate, in short runs on a pocket model",
        {"model": "pocket-llama", "only": ""},
    ),
    "load": Benchmark(
        "loading.load_lines",
        "time and memory from files (of a folder, or random weights) to a model",
        {"model": MODEL, "repeats": 3},
    ),
    "quantize": Benchmark(
        "quantize.quantize_lines",
        "a model's quantised forms beside the plain one: bytes, a LoRA step, decoding",
        {"model": MODEL, "repeats": 3},
    ),
    "step": Benchmark(
        "step.step_lines",
        "time and memory of a training step",
        {"model": MODEL, "quantize": "none", "adapter": "lora", "tokens": 256, "rows": 4}
        | {"checkpointing": "none", "device": "cpu", "dtype": "bfloat16", "repeats": 3},
    ),
    "plan": Benchmark(
        "plan_check.plan_lines",
        "the plan of a training step and of answers against measured peaks of memory",
        {"model": MODEL, "tokens": 128, "processes": 1},
    ),
    "llama-7b-fits": Benchmark(
        "fits.fits_lines",
        "random 7B weights through load, attach, a training step and save, within 16 GB",
        {"model": "llama-7b", "quantize": "int8", "adapter": "parallel", "tokens": 256},
    ),
}
