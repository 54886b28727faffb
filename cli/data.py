"""data: list, fetch, show and check data sets; make training rows of logs."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import DATA, PROGRAM, add, parse_columns, pick
from files.errors import UserError, unknown

if TYPE_CHECKING:  # importing it imports torch
    from data.sources import Data

ACTIONS = {
    "list": "data sets by name: rows, licence, origin, whether they are here",
    "fetch": "download data sets into the cache and verify them",
    "show": "some rows of a data set, and how many it has",
    "check": "read data sets whole: sums, counts, answers, rationales, leakage",
    "from-log": "make training rows of zero-shot-CoT logs, as the paper did",
}
USES = {  # action -> the options that it takes
    "list": ("data_dir",),
    "fetch": ("names",),
    "show": ("names", "data_dir", "columns", "rows", "strict_rows"),
    "check": ("names", "data_dir", "columns", "strict_rows"),
    "from-log": ("names", "keep_wrong", "out"),
}
LONGEST = 2000  # characters of a text that show prints


def add_options(parser: argparse.ArgumentParser) -> None:
    rows = "\n".join(f"  {name:10}{about}" for name, about in ACTIONS.items())
    parser.description = f"Data sets by name.\n\nactions:\n{rows}"
    parser.add_argument("action", help=", ".join(ACTIONS))
    parser.add_argument(
        "names", nargs="*", help="data sets, files, or data sets of the hub; from-log: log files"
    )
    table = pick(DATA, "--data-dir", "--columns", "--strict-rows")
    table |= {
        "--rows N": (int, "show: how many rows (2)"),
        "--keep-wrong": (bool, "from-log: also rationales that reach a wrong answer"),
        "--out FILE": "from-log: the JSON file to write",
    }
    add(parser, "", table)


def run(options: argparse.Namespace) -> int:
    action = options.action
    if action not in ACTIONS:
        raise unknown("action of data", action, ACTIONS)
    for name in dict.fromkeys(name for names in USES.values() for name in names):
        if getattr(options, name) not in (None, False, []) and name not in USES[action]:
            option = name if name == "names" else "--" + name.replace("_", "-")
            raise UserError(f"{option} does not apply to data {action}")
    if options.rows is not None and options.rows < 0:
        raise UserError(f"--rows {options.rows} must not be negative")
    if action != "list" and not options.names:
        example = "LOG --out FILE" if action == "from-log" else "math-v1"
        raise UserError(f"data {action} needs a name: {PROGRAM} data {action} {example}")
    actions = {
        "list": print_list,
        "fetch": fetch_sets,
        "show": show,
        "check": check,
        "from-log": from_log,
    }
    return actions[action](options)


def print_list(options: argparse.Namespace) -> int:
    from data.fetch import cache_folder
    from data.sources import SOURCES, is_here
    from eval.table import Table

    data_dir = options.data_dir or ""
    paper = SOURCES["AddSub"]
    heads, rows = ("name", "rows", "kind", "licence", "sha256", "here", "about"), []
    for name, source in SOURCES.items():
        kind = "train" if source.trains else "test"
        kind = f"train, then {len(source.tests)} tests" if source.tests else kind
        count = f"{source.rows:,}" if source.rows else "?"
        pinned = "pinned" if source.pinned else "unpinned"
        here = "yes" if is_here(name, data_dir) else "no"
        rows.append((name, count, kind, source.licence, pinned, here, source.about))
    here = "yes" if is_here("math-v1", data_dir) else "no"
    about = "the paper's v1 split of the six math sets, 816 test problems"
    rows.append(("math-v1", "3,260", "train, then 6 tests", paper.licence, "pinned", here, about))
    about = "word problems for the pocket models"
    made = ("wordproblems", "16,000", "train, then 7 tests", "this project's", "made here", "yes")
    rows.append((*made, about))
    print("\n".join(Table(heads, rows, names=len(heads)).to_text()))
    origin = paper.files[0].url.partition("/raw/")[0]
    print(
        f"\ncache: {cache_folder()}; all but alpaca come from {origin}.\n"
        "unpinned: this project does not know its sha256; that of the first download is "
        "remembered, and a later change is refused."
    )
    return 0


def fetch_sets(options: argparse.Namespace) -> int:
    from data.fetch import fetch
    from data.sources import EXPERIMENTS, SOURCES, files_of, known_name

    for name in options.names:
        if known_name(name) not in (*SOURCES, *EXPERIMENTS):
            raise unknown("data set", name, [*EXPERIMENTS, *SOURCES])
    for name in options.names:
        for path in fetch(files_of(known_name(name))):
            print(f"{name}: {path} ({path.stat().st_size:,} bytes)")
    return 0


def reading_options(options: argparse.Namespace) -> dict:
    """Arguments of `load_data` that say how files are read."""
    return {
        "data_dir": options.data_dir or "",
        "columns": parse_columns(options.columns),
        "strict_rows": bool(options.strict_rows),
    }


def show(options: argparse.Namespace) -> int:
    """Counts, how the files were read, what a run would hold out, and some rows."""
    from data.sources import TEST_SHARE, load_data

    for name in options.names:
        data = load_data(name, test_share=TEST_SHARE, **reading_options(options))
        tests = ", ".join(f"{test} ({len(rows):,})" for test, rows in data.tests.items())
        print(f"{data.name}: {len(data.train):,} rows to train on; tests: {tests or 'none'}")
        for note in [*data.notes, *held_out_notes(data, TEST_SHARE)]:
            print(f"  {note}")
        rows = data.train or next(iter(data.tests.values()), [])
        for row in rows[: 2 if options.rows is None else options.rows]:
            print(json.dumps(shorten(row), indent=2, ensure_ascii=False))
    return 0


def shorten(row: dict) -> dict:
    """A row whose long texts are cut, with the number of characters left out."""
    return {
        key: f"{text[:LONGEST]} ... ({len(text) - LONGEST:,} more characters)"
        if isinstance(text, str) and len(text) > LONGEST
        else text
        for key, text in row.items()
    }


def held_out_notes(data: "Data", test_share: float) -> list[str]:
    """What a run with the default test_share and seed would hold out of a user's own data."""
    share = f"{100 * test_share:.0f}%, test_share"
    if data.is_text:
        return [
            "plain text: a run packs it to rows of train.cutoff tokens and holds out "
            f"{share}, to measure the loss on"
        ]
    if data.held_out:
        rows = f"{len(data.held_out):,} rows without answers"
        return [f"held out ({share}) to measure the loss on: {rows}"]
    return [
        f"held out ({share}) to measure answers on: {len(rows):,} rows"
        for rows in data.tests.values()
        if data.is_own
    ]


def check(options: argparse.Namespace) -> int:
    """Print everything about every data set, then fail with all that is wrong."""
    from experiments.check_data import check_data

    problems = []
    for name in options.names:
        problems += check_data(name, **reading_options(options))
    if problems:
        raise UserError("; ".join(problems))
    return 0


def from_log(options: argparse.Namespace) -> int:
    from data.from_log import rows_from_log
    from files.writing import make_folder, write_text

    if not options.out:
        raise UserError("data from-log needs --out FILE.json")
    out = Path(options.out)
    if out.exists():
        raise UserError(f"{out} exists: give another --out")
    rows: list[dict] = []
    for log in map(Path, options.names):
        kept, counts = rows_from_log(log, options.keep_wrong)
        print(f"{log}: {', '.join(f'{count} {why}' for why, count in sorted(counts.items()))}")
        rows += kept
    if not rows:
        raise UserError("no record was kept: nothing was written")
    make_folder(out.parent)
    write_text(out, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    print(f"{len(rows)} rows in {out}; train on them with --data {out}")
    return 0
