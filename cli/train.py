"""train: train an adapter, measure it, and say what to do next. The default command."""

import argparse
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cli.closing import closing_lines, print_result
from cli.launch import OR_RESUME, resume_or_start
from cli.options import (
    COMPILE,
    DATA,
    MODEL,
    SETTINGS,
    TESTS,
    TRAINED,
    add,
    command_line,
    data_settings,
    given,
    resumable,
    training_settings,
)
from experiments.folders import fresh_folder, remove_if_empty
from files.errors import UserError

if TYPE_CHECKING:  # importing them imports torch
    from train.parallel import Processes
    from train.settings import Settings


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Any setting of train/settings.py can be changed with --set, for example\n"
        "--set train.learning_rate=1e-3 --set adapter.size=64"
    )
    parser.set_defaults(folder=None)  # the one that `numbered_folder` chose
    add(parser, "model", MODEL)
    add(parser, "adapter", TRAINED)
    of_data = {
        "--only-right": (bool, "only rows whose rationale reaches the right answer"),
        "--train-on-test": (
            bool,
            "train although test problems are in the data; the result says so",
        ),
    }
    add(parser, "data", DATA | of_data)
    of_training = {
        "--seed N": (int, "of initial weights, order of rows and dropout (0)"),
        "--max-steps N": (int, "stop after this many steps; 0: after train.epochs"),
        "--find-rate": (bool, "first find train.learning_rate, by short runs on held-out rows"),
    }
    add(parser, "training", SETTINGS | of_training | COMPILE)
    add(parser, "evaluation", TESTS)
    output = {
        "--out FOLDER": "of the results (runs/MODEL-ADAPTER-DATA, numbered where it exists)",
        "--keep N": (int, "keep the newest N checkpoints (1)"),
        "--dry-run": (bool, "say what the run would need and compare with, as `plan`, and stop"),
        "--resume RUN": "continue the interrupted run here, with its own settings; --device and "
        "--set of what changes memory only (train.micro_batch_size ...) may be given",
    }
    add(parser, "output", output | OR_RESUME)


def run(options: argparse.Namespace) -> int:
    if options.dry_run:
        return dry_run(options)
    if os.environ.get("RANK", "0") == "0":
        print(first_line(options), flush=True)
    from experiments import run as _  # noqa: F401 - before the processes wait for each other
    from train.parallel import started

    try:
        with started() as processes:
            return train(processes, options)
    finally:
        if options.folder is not None:
            remove_if_empty(options.folder)  # where the run was refused


def dry_run(options: argparse.Namespace) -> int:
    from cli.plan import text_of
    from experiments.plan import plan_run

    if options.resume:
        raise UserError(
            f"--dry-run is of a new run: {command_line('plan', '--config')} RUN/run.toml plans one "
            "that is there"
        )
    settings = settings_of(options)
    print(text_of(plan_run(settings), settings))
    return 0


def first_line(options: argparse.Namespace) -> str:
    """What is about to run, from the options alone: printed before torch is imported."""
    if options.resume:
        return f"resuming {options.resume}"
    out = f" -> {options.out}" if options.out else ""
    if options.continue_from is not None:
        return f"training {options.continue_from} further{out}"
    if options.config or options.recipe or options.set:
        stated = ", ".join(filter(None, [options.config, options.recipe, *options.set]))
        return f"{options.model or 'training'} with {stated}{out}"
    model = options.model or "pocket-llama"
    data = options.data or ("wordproblems" if model.startswith("pocket-") else "math-v1")
    adapter = options.adapter or "parallel"
    folder = options.out or numbered_folder(options, model, adapter, data)
    return f"{model} + {adapter} on {data} -> {folder}"


def numbered_folder(options: argparse.Namespace, model: str, adapter: str, data: str) -> Path:
    """runs/MODEL-ADAPTER-DATA, with a number where it exists; created, and kept in `options`."""
    if options.folder is None:
        name = f"{Path(model).name}-{adapter}-{Path(data).stem}"
        options.folder = fresh_folder(Path("runs") / name, numbered=True)
    return options.folder


def train(processes: "Processes", options: argparse.Namespace) -> int:
    from experiments.run import run as train_and_measure
    from train.checkpoint import checkpoints

    if options.or_resume:
        given_settings = partial(settings_of, options)
        options = resume_or_start(options, processes, "run.toml", given_settings)
        if options is None:
            return 0
    settings, folder = resumed(options, processes) if options.resume else new(options, processes)
    resume = bool(options.resume and checkpoints(folder))
    if options.resume and not resume:
        print(f"{folder} has no checkpoint yet: starting from step 0")
    shared = replace(processes, sharded=settings.shard)
    if options.find_rate:
        from experiments.find_rate import find_rate, rate_lines

        settings, trials = find_rate(settings, shared)
        if processes.is_writer:
            print("\n".join(rate_lines(settings, trials)))
    again = command_line("--resume", folder)

    def point() -> str:
        return " from the last checkpoint" if checkpoints(folder) else " from the start"

    with resumable(folder / "run.toml", again, point):
        result = train_and_measure(settings, folder, resume, shared)
    if result.signal:
        print(f"stopped; continue with: {again}")
        return 128 + result.signal
    print_result(result, settings)
    print(f"report: {folder / 'report.html'}")
    print("\n".join(closing_lines(result, settings, folder)))
    return result.verdict.status


def resumed(options: argparse.Namespace, processes: "Processes") -> "tuple[Settings, Path]":
    """(settings, folder) of --resume. Raises UserError."""
    from experiments.base import for_processes
    from experiments.run import resume_settings

    allowed = ("resume", "device", "set", "debug")
    others = [value for name, value in vars(options).items() if name not in allowed]
    if any(value not in (None, [], False) for value in others):
        raise UserError(
            "--resume continues a run with its own settings; give no other option with it but "
            "--device and some of --set"
        )
    folder = Path(options.resume)
    settings = resume_settings(folder, given(options, ("device",)), options.set)
    return settings if options.device else for_processes(settings, processes), folder


def settings_of(options: argparse.Namespace) -> "Settings":
    """The settings of a new run. Raises UserError."""
    from experiments.folders import absolute_paths

    table = given(options, ("seed",)) | data_settings(options)
    for part, names in (
        ("train", ("max_steps", "keep", "compile")),
        ("eval", ("items", "compile")),
    ):
        if of_part := given(options, names):
            table[part] = of_part
    return absolute_paths(training_settings(options, table))


def new(options: argparse.Namespace, processes: "Processes") -> "tuple[Settings, Path]":
    """(settings, folder) of a new run. Raises UserError."""
    from experiments.base import for_processes

    settings = settings_of(options)
    if settings.continue_from:
        adapter = "continued"
        settings = settings if options.device else for_processes(settings, processes)
    else:
        parts = settings.adapter.parts.items()
        adapter = settings.adapter.preset or "+".join(name or part.kind for name, part in parts)
    return settings, processes.from_writer(
        lambda: (
            fresh_folder(Path(options.out), numbered=False)
            if options.out
            else numbered_folder(options, settings.model, adapter, settings.data)
        )
    )
