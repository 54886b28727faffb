"""benchmark: measure speed and memory of this machine."""

import argparse

from benchmarks import BENCHMARKS
from files.errors import unknown

OPTIONS = {
    "only": "rows whose name holds this; several with commas",
    "out": "folder of the table as Markdown, JSON and a plot",
    "minutes": "parts that do not fit into them are listed as not run",
    "smoke": "tiny shapes, everything once, in this process: does it run?",
    "data-dir": "folder that holds the paper's dataset/, for `evaluate`; else word problems",
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
    rows = "\n".join(f"  {name:15}{case.measures}" for name, case in BENCHMARKS.items())
    parser.description = f"Measure speed and memory of this machine.\n\ncases:\n{rows}"
    parser.add_argument("--case", default="table", help="table (default) or another of the above")
    for option, text in OPTIONS.items():
        defaults = {name: case.defaults.get(option) for name, case in BENCHMARKS.items()}
        defaults = {name: value for name, value in defaults.items() if value is not None}
        listed = ", ".join(f"{name}: {value}" for name, value in defaults.items())
        kind = type(next(iter(defaults.values())))
        if kind is bool:
            parser.add_argument(f"--{option}", action="store_true", default=None, help=text)
        else:
            parser.add_argument(f"--{option}", type=kind, help=f"{text} ({listed})")


def run(options: argparse.Namespace) -> int:
    if options.case not in BENCHMARKS:
        raise unknown("benchmark case", options.case, BENCHMARKS)
    given = {
        name: value
        for name in OPTIONS
        if (value := vars(options)[name.replace("-", "_")]) is not None
    }
    for line in BENCHMARKS[options.case].lines(**given):
        print(line, flush=True)
    return 0
