"""train, pretrain, plan, quantize and benchmark on the command line."""

import argparse
import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import (
    MODEL_OPTIONS,
    add_data_options,
    add_model_options,
    data_settings,
    given,
    loads_of,
)
from files.errors import UserError, unknown

if TYPE_CHECKING:  # the options are there before torch is loaded
    from train.parallel import Processes


def add_train(parser: argparse.ArgumentParser):
    parser.epilog = "Any setting of train/settings.py can be changed with --set, for example --set train.learning_rate=1e-3 --set adapter.size=64"
    add_model_options(parser)
    parser.add_argument(
        "--adapter", help="a name of adapters/presets.toml (parallel), or several, lora+prefix"
    )
    parser.add_argument(
        "--load",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="an adapter to build on, frozen; may be repeated",
    )
    add_continue(parser)
    add_data_options(parser)
    parser.add_argument(
        "--only-right",
        action="store_true",
        default=None,
        help="train only on rows whose rationale reaches the right answer",
    )
    parser.add_argument(
        "--train-on-test",
        action="store_true",
        default=None,
        help="train although a test set is in the training data; the result says so",
    )
    parser.add_argument("--recipe", help="a recipe of train/recipes, or a TOML file")
    parser.add_argument(
        "--config", help="a TOML file of settings, such as the run.toml of another run"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting; may be repeated",
    )
    parser.add_argument(
        "--seed", type=int, help="of the adapter's start, the order of rows and dropout; default 0"
    )
    parser.add_argument(
        "--max-steps", type=int, help="stop after this many steps; 0: after train.epochs"
    )
    parser.add_argument("--keep", type=int, help="keep the newest N checkpoints; default 1")
    parser.add_argument(
        "--items", type=int, help="measure on the first N problems of each test set only; 0: all"
    )
    parser.add_argument(
        "--out",
        help="folder of the results; default runs/MODEL-ADAPTER-DATA, numbered when it exists",
    )
    parser.add_argument(
        "--resume",
        metavar="RUN",
        help="continue the interrupted run in this folder, with its own settings; --device and "
        "--set of what changes memory alone (train.micro_batch_size, train.checkpointing ...) go with it",
    )
    return train


def add_continue(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--continue",
        dest="continue_from",
        metavar="RUN_OR_FOLDER",
        help="train a saved adapter further, in place of a new one: that of a run, with the run's settings "
        "but for the options given, or one in a folder (ours, PEFT's or the paper's)",
    )


def train(options: argparse.Namespace) -> int:
    from experiments import run as experiment  # noqa: F401 - what takes a while is done before the processes meet: then they go on side by side
    from train.parallel import started

    with started() as processes:
        return train_in(processes, options)


def train_in(processes: "Processes", options: argparse.Namespace) -> int:
    from experiments.base import for_processes
    from experiments.continued import settings_to_continue
    from experiments.folders import absolute_paths, fresh_folder
    from experiments.run import can_resume, resume_settings, run
    from experiments.text import loss_text, published_lines, score_lines
    from train.settings import settings

    chosen = given(options, (*MODEL_OPTIONS, "seed")) | data_settings(options)
    if options.adapter is not None:
        chosen["adapter"] = {"preset": options.adapter}
    if options.load:
        chosen["load"] = loads_of(options.load)
    if of_training := given(options, ("max_steps", "keep")):
        chosen["train"] = of_training
    if options.items is not None:
        chosen["eval"] = {"items": options.items}
    if options.resume:
        if (
            chosen.keys() - {"device"}
            or options.config
            or options.recipe
            or options.out
            or options.continue_from is not None
        ):
            raise UserError(
                "--resume continues a run with its own settings; give no other option with it but --device and some of --set"
            )
        folder = Path(options.resume)
        made = resume_settings(folder, chosen, options.set)
        if "device" not in chosen:
            made = for_processes(made, processes)
        if not can_resume(folder):
            print(f"{folder} has no checkpoint yet: starting from step 0")
    else:
        if options.continue_from is None:
            made = settings(options.config, options.recipe, chosen, options.set)
        else:
            made = settings_to_continue(
                options.continue_from, options.config, options.recipe, chosen, options.set
            )
            made = made if "device" in chosen else for_processes(made, processes)
        made = absolute_paths(made)
        adapter = (
            "continued"
            if made.continue_from
            else made.adapter.get("preset") or made.adapter.get("kind") or "+".join(made.adapter)
        )
        name = f"{Path(made.model).name}-{adapter}-{Path(made.data).stem}"
        folder = processes.from_writer(
            lambda: fresh_folder(
                Path(options.out) if options.out else Path("runs") / name, numbered=not options.out
            )
        )
    processes = replace(processes, sharded=made.shard)
    try:
        result = run(
            made, folder, resume=bool(options.resume) and can_resume(folder), processes=processes
        )
    except (
        KeyboardInterrupt,
        SystemExit,
    ):  # while measuring, or at a second signal; at the first the loop itself takes care
        if (folder / "run.toml").is_file():
            where = (
                "continue from the last checkpoint"
                if can_resume(folder)
                else "nothing is trained yet; begin again"
            )
            print(f"\nstopped; {where} with: python run.py --resume {folder}")
        raise
    if result.signal:
        print(f"stopped; continue with: python run.py --resume {folder}")
        return 128 + result.signal
    if result.after:
        first = "before" if made.continue_from else "base"
        lines = score_lines(result.before, result.after, "with adapter", first)
        beside = published_lines(made.data, made.model, result.preset, result.after)
        print("\n" + "\n".join([*lines, *([""] if beside else []), *beside]))
        if not result.before:
            which = (
                "the adapter was not measured before"
                if made.continue_from
                else "the base was not measured"
            )
            print(f"({which}; --set eval.before=true does)")
    elif not result.loss:
        print("nothing was measured: the data has no test set; --tests NAME,NAME chooses some")
    if result.loss:
        print(f"held-out loss per token: {loss_text(result.loss)}")
    for line in result.verdict.lines:
        print(line)
    print(f"report: {folder / 'report.html'}")
    return result.verdict.status


def add_pretrain(parser: argparse.ArgumentParser):
    parser.add_argument(
        "--recipe", default="pocket", help="a recipe of train/recipes, or a TOML file"
    )
    parser.add_argument("--family", default="llama", help="llama (default), bloom, opt or gptj")
    parser.add_argument("--seed", type=int, help="of weights and text; default: the recipe's")
    parser.add_argument(
        "--max-steps",
        type=int,
        help="steps, and with them the length of the text; default: the recipe's",
    )
    parser.add_argument("--out", required=True, help="folder of the new model")
    return pretrain


def pretrain(options: argparse.Namespace) -> int:
    from experiments.folders import fresh_folder
    from experiments.pretrain import pretrain as train_from_scratch

    signal = train_from_scratch(
        options.recipe,
        options.family,
        fresh_folder(Path(options.out), numbered=False),
        options.seed,
        options.max_steps,
    )
    return 128 + signal if signal else 0


def add_plan(parser: argparse.ArgumentParser):
    parser.description = (
        "Say what a run would need, before anything is downloaded: parameters, memory of each device, computation. "
        "The status is 1 when it does not fit into --memory."
    )
    parser.epilog = (
        "Nothing is downloaded but, for a model that run.py models does not list, its config.json."
    )
    add_model_options(parser, default="llama-7b")
    parser.add_argument(
        "--adapter", help="a name of adapters/presets.toml (parallel), or several, lora+prefix"
    )
    parser.add_argument("--recipe", help="a recipe of train/recipes, or a TOML file")
    parser.add_argument("--config", help="a TOML file of settings, such as the run.toml of a run")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, train.micro_batch_size=2; may be repeated",
    )
    parser.add_argument(
        "--load",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="an adapter to build on, frozen; may be repeated",
    )
    add_continue(parser)
    parser.add_argument(
        "--memory", help="of the cards, 24GB or 24GB,24GB: does it fit, and what to change if not"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        help="as torchrun is to start, each with a device of its own; --shard: they hold the base together",
    )
    parser.add_argument(
        "--length",
        type=int,
        help="tokens of a row and of a prompt; default: train.cutoff, the most there can be",
    )
    parser.add_argument(
        "--labelled",
        type=float,
        default=1.0,
        help="share of a row's tokens that have a label (1.0, the most there can be)",
    )
    parser.add_argument("--rows", type=int, help="rows to train on, for the time of the whole run")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument(
        "--flops",
        help="floating-point operations a second that the device reaches, 150T or 150e12, for a time",
    )
    rate.add_argument(
        "--measure",
        action="store_true",
        help="measure that of a matrix product on the device here (a second)",
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    return plan


def plan(options: argparse.Namespace) -> int:
    import json

    from cli.options import run_settings
    from experiments.plan import plan_run
    from experiments.plan_text import plan_text

    facts = plan_run(
        run_settings(options),
        memory=options.memory,
        processes=options.processes,
        length=options.length,
        labelled=options.labelled,
        rows=options.rows,
        flops=options.flops,
        measure=options.measure,
    )
    print(json.dumps(facts) if options.json else plan_text(facts))
    return 0 if facts.get("fits", True) else 1


def add_quantize(parser: argparse.ArgumentParser):
    parser.description = (
        "Writes the model with the weights of its blocks in 8 or 4 bits, and measures it beside the model as it was. "
        "They are never in memory together."
    )
    parser.add_argument(
        "--model",
        default="pocket-llama",
        help="a name of `run.py models`, a hub repository or a folder (pocket-llama)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub repository")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...")
    parser.add_argument(
        "--dtype",
        help="float32, bfloat16 or float16 of the other weights and the computation; default: the checkpoint's own",
    )
    parser.add_argument("--to", required=True, help="int8, llm-int8 (x is rounded as well) or nf4")
    parser.add_argument("--out", required=True, help="new folder of the quantised model")
    parser.add_argument(
        "--text", help="a text file to measure on; default: the solutions of word problems"
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=1024,
        help="measure on the first N tokens (1024); 0: do not measure",
    )
    parser.add_argument(
        "--shard-size", type=float, default=5.0, help="largest size of a file of weights, in GB (5)"
    )
    return quantize


def quantize(options: argparse.Namespace) -> int:
    from experiments.quantize import quantize_model

    result = quantize_model(
        options.model,
        Path(options.out),
        options.to,
        revision=options.revision,
        device=options.device or "auto",
        dtype=options.dtype,
        text=options.text,
        tokens=options.tokens,
        shard_size=options.shard_size,
    )
    print("\n".join(result.lines()))
    return 0


def add_benchmark(parser: argparse.ArgumentParser):
    parser.description = "Measure this machine. The cases: " + "; ".join(
        f"{name}: {case.said}" for name, case in BENCHMARKS.items()
    )
    parser.add_argument("--case", default="load", help=", ".join(BENCHMARKS))
    defaults = {
        name: " ".join(
            f"{case}: {one.defaults[name]}"
            for case, one in BENCHMARKS.items()
            if name in one.defaults
        )
        for name in (
            "model",
            "repeats",
            "quantize",
            "adapter",
            "tokens",
            "rows",
            "checkpointing",
            "device",
            "dtype",
            "processes",
        )
    }
    parser.add_argument(
        "--model", help=f"a known name; random weights of its shape are used ({defaults['model']})"
    )
    parser.add_argument(
        "--repeats", type=int, help=f"the least of so many counts ({defaults['repeats']})"
    )
    parser.add_argument("--quantize", help=f"int8, llm-int8, nf4 or none ({defaults['quantize']})")
    parser.add_argument("--adapter", help=f"a preset ({defaults['adapter']})")
    parser.add_argument("--tokens", type=int, help=f"of a row ({defaults['tokens']})")
    parser.add_argument(
        "--rows", type=int, help=f"that go through the model at once ({defaults['rows']})"
    )
    parser.add_argument(
        "--checkpointing", help=f"none, block or every N ({defaults['checkpointing']})"
    )
    parser.add_argument("--device", help=f"cpu, cuda, cuda:1 ... ({defaults['device']})")
    parser.add_argument("--dtype", help=f"float32, bfloat16 or float16 ({defaults['dtype']})")
    parser.add_argument(
        "--processes", type=int, help=f"that hold the base together ({defaults['processes']})"
    )
    return benchmark


@dataclass(frozen=True)
class Benchmark:
    """A function of a module that yields lines of text, the options it takes with their defaults, and what it measures."""

    module: str
    function: str
    defaults: dict
    said: str


BENCHMARKS = {
    "load": Benchmark(
        "benchmarks.loading",
        "load_lines",
        {"model": "smollm2-135m", "repeats": 3},
        "seconds and memory from the files (a folder's, or random ones) to a model that is ready",
    ),
    "quantize": Benchmark(
        "benchmarks.loading",
        "quantize_lines",
        {"model": "smollm2-135m", "repeats": 3},
        "a model's quantised forms beside the plain one",
    ),
    "step": Benchmark(
        "benchmarks.step",
        "speed_lines",
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
        "seconds and memory of a training step",
    ),
    "plan": Benchmark(
        "benchmarks.plan_check",
        "plan_lines",
        {"model": "smollm2-135m", "tokens": 128, "processes": 1},
        "what run.py plan says of a training step and of answers, against measured peaks of memory",
    ),
    "llama-7b-fits": Benchmark(
        "benchmarks.fits",
        "fits_lines",
        {"model": "llama-7b", "quantize": "int8", "adapter": "parallel", "tokens": 256},
        "random 7B weights from the disk through load, attach, a training step and save, within 16 GB",
    ),
}


def benchmark(options: argparse.Namespace) -> int:
    if options.case not in BENCHMARKS:
        raise unknown("benchmark case", options.case, BENCHMARKS)
    case = BENCHMARKS[options.case]
    chosen = {
        name: value
        for name, value in vars(options).items()
        if value is not None and name not in ("case", "debug")
    }
    for name, value in chosen.items():
        if name not in case.defaults:
            raise UserError(
                f"--{name} has no meaning for --case {options.case}, which takes {', '.join(f'--{other}' for other in case.defaults)}"
            )
        if isinstance(value, int) and value < 1:
            raise UserError(f"--{name} {value} must be at least 1")
    for line in getattr(importlib.import_module(case.module), case.function)(
        *(case.defaults | chosen).values()
    ):
        print(line, flush=True)
    return 0


COMMANDS = {  # word -> adds the command's options, returns what carries them out
    "train": add_train,
    "pretrain": add_pretrain,
    "plan": add_plan,
    "quantize": add_quantize,
    "benchmark": add_benchmark,
}
