"""plan: what a run needs, and whether it fits, before anything is downloaded."""

import argparse

from cli.options import FLAG, add, add_model_options, training_settings


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Parameters, memory of each device and computation of a run. The exit status is 1 where\n"
        "it does not fit into --memory. Nothing is downloaded but the config.json of a model that\n"
        "`models` does not list."
    )
    add_model_options(parser, default="llama-7b")
    add(parser.add_argument_group("adapter"), "--adapter", "--load", "--continue")
    add(parser.add_argument_group("settings"), "--recipe", "--config", "--set")
    group = parser.add_argument_group("plan")
    group.add_argument(
        "--memory", help="of each card, 24GB or 24GB,24GB: does it fit, and what to change if not"
    )
    group.add_argument(
        "--processes",
        type=int,
        default=1,
        help="that torchrun starts, each with its own device (1)",
    )
    group.add_argument(
        "--length", type=int, help="tokens of a row and of a prompt (train.cutoff, the maximum)"
    )
    group.add_argument(
        "--labelled", type=float, default=1.0, help="share of a row's tokens with a label (1.0)"
    )
    group.add_argument("--rows", type=int, help="rows to train on, for the time of the whole run")
    rate = group.add_mutually_exclusive_group()
    rate.add_argument("--flops", help="per second that the device reaches, 150T, for a time")
    rate.add_argument("--measure", help="measure those of a matrix product on this device", **FLAG)
    add(group, "--json")


def run(options: argparse.Namespace) -> int:
    import json

    from experiments.plan import plan_run
    from experiments.plan_text import plan_text

    needs_model = not options.config and options.continue_from is None
    facts = plan_run(
        training_settings(options, {"model": options.model or "llama-7b"} if needs_model else {}),
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
