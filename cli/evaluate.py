"""evaluate: measure a model, with saved adapters or without."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cli.launch import OR_RESUME, resume_or_start
from cli.options import (
    COMPILE,
    DATA,
    DECODE_MEMORY,
    SETTINGS,
    TESTS,
    add,
    add_trained_model,
    command_line,
    data_settings,
    given,
    measuring_settings,
    parse_numbers,
    refuse_others,
    resumable,
)
from files.errors import UserError

if TYPE_CHECKING:  # importing them imports torch
    from experiments.evaluate import Arguments, Evaluation
    from train.parallel import Processes

DECODING = {  # settings of [eval], with TESTS' --items
    "--batch-size N": (int, "problems answered at once; changes speed and memory only"),
    "--max-new-tokens N": (int, "maximum length of an answer"),
    "--scoring NAME": "generate (default), or likelihood: of a problem's options the likeliest",
    **DECODE_MEMORY,
    "--beams N": (int, "1: greedy (default); the paper uses 4"),
    "--temperature T": (float, "above 0: answers are sampled"),
    "--top-k K": (int, "sample from the k likeliest tokens"),
    "--top-p P": (float, "sample from the likeliest tokens with this total probability"),
}
EVAL_OPTIONS = ("items", "compile", *(key.split()[0][2:].replace("-", "_") for key in DECODING))


def add_options(parser: argparse.ArgumentParser) -> None:
    add_trained_model(parser, average=True)
    add(parser, "data", DATA | TESTS)
    seeds = {"--seeds N,N": "of sampled answers, 0,1,2: one answer with each"}
    add(parser, "answers", DECODING | seeds)
    add(parser, "settings", SETTINGS | COMPILE)
    output = {
        "--out FOLDER": "of the results (RUN/evaluate or runs/evaluate-MODEL-DATA, numbered)",
        "--resume FOLDER": "continue the interrupted evaluation here, with its own settings",
        "--teacher": (bool, "measure the rationales of the six math sets instead of a model"),
    }
    add(parser, "output", output | OR_RESUME)


def run(options: argparse.Namespace) -> int:
    from experiments import evaluate as _  # noqa: F401 - before the processes wait for each other
    from train.parallel import started

    with started() as processes:
        if options.teacher:
            return print_teacher(options)
        return evaluate(processes, options)


def print_teacher(options: argparse.Namespace) -> int:
    from experiments.published import teacher_lines

    refuse_others(options, "--teacher reads the rationales of the data", ("teacher", "data_dir"))
    print("\n".join(teacher_lines(options.data_dir or "")))
    return 0


def evaluate(processes: "Processes", options: argparse.Namespace) -> int:
    from experiments import evaluate as evaluation
    from experiments.base import for_processes
    from experiments.folders import remove_if_empty

    if options.or_resume:
        given_settings = new(options).settings
        options = resume_or_start(options, processes, evaluation.STARTED, lambda: given_settings)
        if options is None:
            return 0
    if options.resume:
        folder, job = Path(options.resume), resumed(options)
    else:
        job = new(options)
        out = Path(options.out) if options.out else default_folder(options, job)
        folder = processes.from_writer(lambda: evaluation.new_folder(out, numbered=not options.out))
    if not options.device:
        job = replace(job, settings=for_processes(job.settings, processes))
    shared = replace(processes, sharded=job.settings.shard)
    try:
        with resumable(folder / evaluation.STARTED, command_line("evaluate", "--resume", folder)):
            result = evaluation.evaluate(
                job.settings, job.adapters, folder, job.average, job.template_name, shared
            )
    finally:
        if not options.out and not options.resume:
            remove_if_empty(folder)  # where the evaluation was refused
    print_result(result, job)
    if not result.loss:
        print(f"predictions: {folder / evaluation.PREDICTIONS}")
    return 0


def resumed(options: argparse.Namespace) -> "Arguments":
    """The evaluation of --resume. Raises UserError."""
    from experiments.evaluate import unfinished

    refuse_others(
        options,
        "--resume continues an evaluation with its own settings",
        ("resume", "batch_size", "device"),
    )
    job = unfinished(Path(options.resume))
    settings = replace(
        job.settings,
        device=options.device or job.settings.device,
        eval=replace(job.settings.eval, **given(options, ("batch_size",))),
    )
    settings.eval.check()
    return replace(job, settings=settings)


def new(options: argparse.Namespace) -> "Arguments":
    """A new evaluation. Raises UserError."""
    from data.wordproblems import MANNERS
    from experiments.evaluate import Arguments
    from experiments.folders import absolute_paths
    from files.toml import parse_set

    answers = given(options, EVAL_OPTIONS)
    if options.seeds is not None:
        answers["seeds"] = parse_numbers("--seeds", options.seeds, "0,1,2")
    table = data_settings(options)
    template_name = table.pop("template", None)
    settings, adapters = measuring_settings(options, table | {"eval": answers})
    if options.max_new_tokens is not None and settings.eval.scoring == "likelihood":
        raise UserError("--max-new-tokens is for answers that are generated; likelihoods take none")
    if options.seeds is not None and not settings.eval.temperature:
        raise UserError("--seeds are for sampled answers: set --temperature above 0")
    data_given = (
        options.run
        or options.data is not None
        or options.config
        or any("data" in parse_set(text) for text in options.set)
    )
    of_wordproblems = settings.data == "wordproblems" and all(
        name.lower().removesuffix("-unseen") in MANNERS for name in settings.tests
    )
    if settings.tests and not data_given and not of_wordproblems:
        settings = replace(settings, data="none")  # measure the named sets and nothing else
    return Arguments(absolute_paths(settings), adapters, options.average, template_name)


def default_folder(options: argparse.Namespace, job: "Arguments") -> Path:
    if options.run:
        return Path(options.run) / "evaluate"
    s = job.settings
    data = [s.data] if s.data != "none" else s.tests[:4]
    sets = "-".join(Path(name).stem for name in data)
    return Path("runs") / f"evaluate-{Path(s.model).name}-{sets}"


def print_result(result: "Evaluation", job: "Arguments") -> None:
    """What was measured, notes, and the scores beside the published figures."""
    from experiments.results import loss_text, score_lines

    s, adapters = job.settings, job.adapters
    which = "average of adapters" if job.average else f"adapter{'s' * (len(adapters) > 1)}"
    which = f"{which} {', '.join(map(str, adapters))}" if adapters else "no adapter"
    stored = f" in {s.quantize}" if s.quantize else ""
    prompt = f"template {result.template.name}, answers {s.eval.decoding}"
    prompt = "plain text" if result.is_text else prompt
    print(f"\nmodel {s.model}{stored}, {which}, data {s.data}, {prompt}")
    for line in result.notes:
        print(line)
    if result.loss:
        print(f"held-out loss per token: {loss_text(result.loss)}")
        return
    title = "with adapter" if adapters else "base"
    lines = score_lines([], result.predictions, title, "base", result.conditions)
    print("\n" + "\n".join(lines))
