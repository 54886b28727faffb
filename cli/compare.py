"""compare: which of several runs differ beyond chance, and in what."""

import argparse
from pathlib import Path

from cli.options import add
from files.errors import UserError


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folders of runs or evaluations, or predictions.jsonl",
    )
    which = {
        "--reader NAME": (str, "whose verdict counts: strict (default) or paper", "strict"),
        "--clean": (bool, "without problems that the training of any of the runs has seen"),
    }
    add(parser, "", which)
    output = parser.add_argument_group("output").add_mutually_exclusive_group()
    add(output, "", {"--json": (bool, "for programs"), "--markdown": (bool, "for a page")})


def run(options: argparse.Namespace) -> int:
    from experiments.compare import as_json, as_markdown, as_text, compare

    if len(options.runs) < 2:
        raise UserError(f"compare {options.runs[0]}: give a second run to compare it with")
    found = compare([Path(run) for run in options.runs], options.reader, options.clean)
    show = as_json if options.json else as_markdown if options.markdown else as_text
    print(show(found))
    return 0
