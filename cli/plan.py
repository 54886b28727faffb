"""plan: what a run needs, and whether it fits, before anything is downloaded."""

import argparse
from typing import TYPE_CHECKING

from cli.options import DATA, MODEL, SETTINGS, TRAINED, add, given, pick, training_settings

if TYPE_CHECKING:  # importing them imports torch
    from train.settings import Settings


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Parameters, memory of each device and computation of a run. The exit status is 1 where\n"
        "it does not fit into --memory. Nothing is downloaded but the config.json of a model that\n"
        "`models` does not list."
    )
    model = "a name of `models`, a hub repository or a folder (llama-7b)"
    add(parser, "model", MODEL, model=model)
    add(parser, "adapter", TRAINED)
    data = {"data": "what the run would be trained on, for the published rows it is compared with"}
    add(parser, "settings", pick(DATA, "--data") | SETTINGS, **data)
    table = {
        "--memory SIZE": "of each card, 24GB or 24GB,24GB: does it fit, and what to change if not",
        "--processes N": (int, "that torchrun starts, each with its own device (1)", 1),
        "--length N": (int, "tokens of a row and of a prompt (train.cutoff, the maximum)"),
        "--labelled SHARE": (float, "share of a row's tokens with a label (1.0)", 1.0),
        "--rows N": (int, "rows to train on, for the time of the whole run"),
        "--json": (bool, "for programs"),
    }
    rate = add(parser, "plan", table).add_mutually_exclusive_group()
    rates = {
        "--flops RATE": "operations a second that the device reaches, 150T: gives a time",
        "--measure": (bool, "measure that rate on a matrix product of this device"),
    }
    add(rate, "", rates)


def run(options: argparse.Namespace) -> int:
    import json

    from experiments.plan import plan_run

    needs_model = not options.config and options.continue_from is None
    model = {"model": options.model or "llama-7b"} if needs_model else {}
    settings = training_settings(options, model | given(options, ("data",)))
    names = ("memory", "processes", "length", "labelled", "rows", "flops", "measure")
    facts = plan_run(settings, **given(options, names))
    print(json.dumps(facts) if options.json else text_of(facts, settings))
    return 0 if facts.get("fits", True) else 1


def text_of(facts: dict, settings: "Settings") -> str:
    """A plan, and the published rows that the run can be compared with."""
    from experiments.comparable import comparison_lines
    from experiments.plan_text import plan_text

    return "\n".join([plan_text(facts), "", *comparison_lines(settings)]).rstrip()
