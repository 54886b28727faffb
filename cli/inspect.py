"""inspect: read the answers of a run, and compare two runs."""

import argparse
from pathlib import Path

from cli.options import FLAG, add
from files.errors import UserError, unknown


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="folder of a run or an evaluation, or a predictions.jsonl")
    group = parser.add_argument_group("which answers")
    group.add_argument(
        "--set", action="append", default=[], help="of this test set only; may be repeated"
    )
    verdict = group.add_mutually_exclusive_group()
    verdict.add_argument("--wrong", help="wrong answers only", **FLAG)
    verdict.add_argument("--right", help="right answers only", **FLAG)
    group.add_argument("--beats", metavar="RUN", help="right here and wrong in that run")
    group.add_argument(
        "--reader",
        default="strict",
        help="strict (default) or paper: which reader's verdict counts",
    )
    group.add_argument("--readers-differ", help="that the two readers read differently", **FLAG)
    group.add_argument("--cut", help="that ran out of tokens", **FLAG)
    group.add_argument("--leaked", help="of problems in the training data", **FLAG)
    output = parser.add_argument_group("output")
    output.add_argument("--limit", type=int, default=10, help="print the first N (10); 0: all")
    add(output, "--json", json="one JSON object a line, for programs")


def run(options: argparse.Namespace) -> int:
    import json

    from eval.answers import MODES
    from experiments.inspect import (
        block,
        chosen,
        place,
        predictions_in,
        run_lines,
        summary,
        without_predictions,
    )

    if options.reader not in MODES:
        raise unknown("reader", options.reader, MODES)
    if options.limit < 0:
        raise UserError(f"--limit {options.limit} must not be negative")
    folder = Path(options.run)
    filters = ("set", "wrong", "right", "beats", "readers_differ", "cut", "leaked", "json")
    if without_predictions(folder) and not any(getattr(options, name) for name in filters):
        print(f"{folder} has no predictions: the data has no test set")
        print("\n".join(run_lines(folder)))
        return 0
    predictions = predictions_in(folder)
    beaten = predictions_in(Path(options.beats)) if options.beats else None
    selected = chosen(
        predictions,
        sets=options.set,
        right=True if options.right else False if options.wrong else None,
        mode=options.reader,
        beats=beaten,
        readers_differ=options.readers_differ,
        cut=options.cut,
        leaked=options.leaked,
    )
    others = {place(prediction): prediction for prediction in beaten or []}
    for prediction in selected[: options.limit or None]:
        if options.json:
            print(json.dumps(prediction, ensure_ascii=False))
        else:
            print(block(prediction, others.get(place(prediction))) + "\n")
    if not options.json:
        more = f"; the first {options.limit} are shown, --limit 0 shows all"
        more *= 0 < options.limit < len(selected)
        print("\n".join([summary(selected, predictions, options.set) + more, *run_lines(folder)]))
    return 0
