"""inspect: read the answers of a run, and compare two runs."""

import argparse
from pathlib import Path

from cli.options import add
from files.errors import UserError, unknown


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="folder of a run or an evaluation, or a predictions.jsonl")
    which = {
        "--set NAME": (list, "of this test set only; may be repeated"),
        "--beats RUN": "right here and wrong in that run",
        "--reader NAME": (str, "whose verdict counts: strict (default) or paper", "strict"),
        "--readers-differ": (bool, "that the two readers read differently"),
        "--cut": (bool, "that ran out of tokens"),
        "--leaked": (bool, "of problems in the training data"),
    }
    verdict = add(parser, "which answers", which).add_mutually_exclusive_group()
    add(verdict, "", {"--wrong": (bool, "wrong ones only"), "--right": (bool, "right ones only")})
    output = {
        "--limit N": (int, "print the first N (10); 0: all", 10),
        "--json": (bool, "one JSON object a line, for programs"),
    }
    add(parser, "output", output)


def run(options: argparse.Namespace) -> int:
    import json

    from eval.answers import MODES
    from experiments.inspect import (
        block,
        place,
        predictions_in,
        run_lines,
        select,
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
    selected = select(
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
