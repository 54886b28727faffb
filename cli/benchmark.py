"""benchmark: measure speed and memory of this machine."""

import argparse
import importlib
from dataclasses import dataclass

from files.errors import UserError, unknown


@dataclass(frozen=True)
class Case:
    """One benchmark: a function in benchmarks/ that yields lines of text."""

    function: str  # module.function
    measures: str
    defaults: dict[str, object]  # the options it takes, in the order of its parameters


CASES = {
    "load": Case(
        "loading.load_lines",
        "time and memory from files (of a folder, or random weights) to a model",
        {"model": "smollm2-135m", "repeats": 3},
    ),
    "quantize": Case(
        "loading.quantize_lines",
        "a model's quantised forms beside the plain one",
        {"model": "smollm2-135m", "repeats": 3},
    ),
    "step": Case(
        "step.speed_lines",
        "time and memory of a training step",
        {
            "model": "smollm2-135m",
            "quantize": "none",
            "adapter": "lora",
            "tokens": 256,
            "rows": 4,
            "checkpointing": "none",
            "device": "cpu",
            "dtype": "bfloat16",
            "repeats": 3,
        },
    ),
    "plan": Case(
        "plan_check.plan_lines",
        "the plan of a training step and of answers against measured peaks of memory",
        {"model": "smollm2-135m", "tokens": 128, "processes": 1},
    ),
    "llama-7b-fits": Case(
        "fits.fits_lines",
        "random 7B weights through load, attach, a training step and save, within 16 GB",
        {"model": "llama-7b", "quantize": "int8", "adapter": "parallel", "tokens": 256},
    ),
}
OPTIONS = {
    "model": "a name of `models`; random weights of its shape are used",
    "repeats": "how often to measure; the least counts",
    "quantize": "int8, llm-int8, nf4 or none",
    "adapter": "a preset",
    "tokens": "length of a row",
    "rows": "rows that go through the model at once",
    "checkpointing": 'none, block or "every N"',
    "device": "cpu, cuda, cuda:1 ...",
    "dtype": "float32, bfloat16 or float16",
    "processes": "that hold the base together",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    rows = "\n".join(f"  {name:15}{case.measures}" for name, case in CASES.items())
    parser.description = f"Measure speed and memory of this machine.\n\ncases:\n{rows}"
    parser.add_argument("--case", default="load", help="load (default) or another of the above")
    for option, text in OPTIONS.items():
        defaults = {name: case.defaults.get(option) for name, case in CASES.items()}
        defaults = {name: value for name, value in defaults.items() if value is not None}
        listed = ", ".join(f"{name}: {value}" for name, value in defaults.items())
        kind = type(next(iter(defaults.values())))
        parser.add_argument(f"--{option}", type=kind, help=f"{text} ({listed})")


def run(options: argparse.Namespace) -> int:
    if options.case not in CASES:
        raise unknown("benchmark case", options.case, CASES)
    case = CASES[options.case]
    given = {name: value for name in OPTIONS if (value := getattr(options, name)) is not None}
    for name, value in given.items():
        if name not in case.defaults:
            takes = ", ".join(f"--{option}" for option in case.defaults)
            raise UserError(
                f"--{name} does not apply to --case {options.case}, which takes {takes}"
            )
        if isinstance(value, int) and value < 1:
            raise UserError(f"--{name} {value} must be at least 1")
    module, _, function = case.function.rpartition(".")
    lines = getattr(importlib.import_module(f"benchmarks.{module}"), function)
    for line in lines(*(case.defaults | given).values()):
        print(line, flush=True)
    return 0
