"""data on the command line: list, fetch, show, check, from-log."""

import argparse
import json
from collections import Counter
from pathlib import Path

from data.answer_kinds import kind_of_answers
from data.fetch import cache_folder, fetch, known_sums, sum_of
from data.sources import (
    EXPERIMENTS,
    SOURCES,
    TEST_SHARE,
    Data,
    files_of,
    is_here,
    known_name,
    load_data,
)
from files.errors import UserError, unknown

ACTIONS = {
    "list": "the data sets by name: rows, licence, where they come from, whether they are here",
    "fetch": "download data sets into the cache, verified; what is there already stays",
    "show": "some rows of a data set, and how many it has",
    "check": "read data sets whole: sums, counts, answers, rationales, what of the tests is in training",
    "from-log": "make training rows of zero-shot-CoT logs, the paper's own way of making data",
}


def add_data(parser: argparse.ArgumentParser):
    parser.description = (
        "Data sets by name. "
        + "; ".join(f"{action}: {text}" for action, text in ACTIONS.items())
        + "."
    )
    parser.add_argument("action", help=", ".join(ACTIONS))
    parser.add_argument(
        "names", nargs="*", help="data sets, files, or data sets of the hub; from-log: log files"
    )
    parser.add_argument(
        "--data-dir",
        default="",
        help="folder that holds the paper's dataset/; without it the cache",
    )
    parser.add_argument(
        "--columns",
        help="what the columns of your file are called, such as instruction=question,answer=label",
    )
    parser.add_argument(
        "--strict-rows", action="store_true", help="refuse a file with rows that cannot be used"
    )
    parser.add_argument("--rows", type=int, help="rows that show prints (2)")
    parser.add_argument(
        "--keep-wrong",
        action="store_true",
        help="from-log: keep rationales that reach a wrong answer, too",
    )
    parser.add_argument("--out", help="from-log: the JSON file to write")
    return data


SHOWN = 2000  # characters of a text that show prints
USES = {  # action -> the options that it knows
    "list": ("data_dir",),
    "fetch": ("names",),
    "show": ("names", "data_dir", "columns", "rows", "strict_rows"),
    "check": ("names", "data_dir", "columns", "strict_rows"),
    "from-log": ("names", "keep_wrong", "out"),
}


def data(options: argparse.Namespace) -> int:
    if options.action not in ACTIONS:
        raise unknown("action of data", options.action, ACTIONS)
    for name in ("names", "data_dir", "columns", "rows", "strict_rows", "keep_wrong", "out"):
        if getattr(options, name) not in (None, False, [], "") and name not in USES[options.action]:
            raise UserError(
                f"data {options.action} has no use for {'names' if name == 'names' else '--' + name.replace('_', '-')}"
            )
    if options.rows is not None and options.rows < 0:
        raise UserError(f"--rows {options.rows} must not be negative")
    if options.action != "list" and not options.names:
        example = "LOG --out FILE" if options.action == "from-log" else "math-v1"
        raise UserError(
            f"data {options.action} needs a name: python run.py data {options.action} {example}"
        )
    return {
        "list": list_all,
        "fetch": fetch_all,
        "show": show,
        "check": check,
        "from-log": from_log,
    }[options.action](options)


def list_all(options: argparse.Namespace) -> int:
    table = [("name", "rows", "kind", "licence", "sha256", "here", "about")]
    for name, source in SOURCES.items():
        kind = (
            f"train, then {len(source.tests)} tests"
            if source.tests
            else "train"
            if source.trains
            else "test"
        )
        here = "yes" if is_here(name, options.data_dir) else "no"
        table.append(
            (
                name,
                f"{source.rows:,}" if source.rows else "?",
                kind,
                source.licence,
                "pinned" if source.pinned else "unpinned",
                here,
                source.about,
            )
        )
    table.append(
        (
            "math-v1",
            "3,260",
            "train, then 6 tests",
            SOURCES["AddSub"].licence,
            "pinned",
            "yes" if is_here("math-v1", options.data_dir) else "no",
            "the paper's v1 split of the six math sets, 816 test problems",
        )
    )
    table.append(
        (
            "wordproblems",
            "16,000",
            "train, then 7 tests",
            "this project's",
            "made here",
            "yes",
            "word problems for the pocket models",
        )
    )
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        print(
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    print(
        f"\ncache: {cache_folder()}; all but alpaca come from {SOURCES['AddSub'].files[0].url.partition('/raw/')[0]}.\n"
        "unpinned: this project has no sum for it; what comes first is remembered, and a later change is refused."
    )
    return 0


def fetch_all(options: argparse.Namespace) -> int:
    for name in options.names:
        if known_name(name) not in (*SOURCES, *EXPERIMENTS):
            raise unknown("data set", name, [*EXPERIMENTS, *SOURCES])
    for name in options.names:
        for path in fetch(files_of(known_name(name))):
            print(f"{name}: {path} ({path.stat().st_size:,} bytes)")
    return 0


def load(options: argparse.Namespace, name: str, test_share: float = 0.0) -> Data:
    from cli.options import columns_of

    columns = columns_of(options.columns)
    return load_data(
        name,
        options.data_dir,
        columns=columns,
        test_share=test_share,
        strict_rows=options.strict_rows,
    )


def show(options: argparse.Namespace) -> int:
    """Counts, how the files were read, what a run would hold out, and some rows."""
    for name in options.names:
        found = load(options, name, test_share=TEST_SHARE)
        print(
            f"{found.name}: {len(found.train):,} rows to train on; tests: "
            + (", ".join(f"{test} ({len(rows):,})" for test, rows in found.tests.items()) or "none")
        )
        for note in [*found.notes, *held_out_notes(found)]:
            print(f"  {note}")
        rows = found.train or next(iter(found.tests.values()), [])
        for row in rows[: 2 if options.rows is None else options.rows]:
            print(json.dumps(shortened(row), indent=2, ensure_ascii=False))
    return 0


def shortened(row: dict) -> dict:
    """A row whose long texts are cut, with the number of characters left out."""
    return {
        key: f"{text[:SHOWN]} ... ({len(text) - SHOWN:,} more characters)"
        if isinstance(text, str) and len(text) > SHOWN
        else text
        for key, text in row.items()
    }


def held_out_notes(data: Data) -> list[str]:
    """What a run with the default test_share and seed would hold out of a user's own data."""
    share = f"{100 * TEST_SHARE:.0f}%, test_share"
    if data.is_text:
        return [
            f"plain text: a run packs it to rows of train.cutoff tokens and holds out {share}, to measure the loss on"
        ]
    if data.held_out:
        return [
            f"held out ({share}) to measure the loss on: {len(data.held_out):,} rows without answers"
        ]
    return [
        f"held out ({share}) to measure answers on: {len(rows):,} rows"
        for rows in data.tests.values()
        if data.is_own
    ]


def check(options: argparse.Namespace) -> int:
    """Everything is said, then a failure of any part ends with status 1."""
    from data.leakage import leakage
    from eval.answers import is_right, reaches, read_answer
    from experiments.labels import check_labels, reading_lines

    bad = []
    for name in map(known_name, options.names):
        found = load(options, name)
        print(f"{name}")
        bad += check_sums(name, options.data_dir)
        source = SOURCES.get(name)
        count = (
            len(next(iter(found.tests.values())))
            if source and not source.trains
            else len(found.train)
        )
        expected = {"math-v1": 3260}.get(name, source.rows if source else 0)
        print(
            f"  rows       {count:,}{f', published {expected:,}' if expected else ''}; {sum(map(len, found.tests.values())):,} test problems"
        )
        if expected and count != expected:
            bad.append(f"{name} has {count:,} rows, not {expected:,}")
        for note in found.notes:
            print(f"  {note}")
        for where in found.left_out:
            print(f"  left out   {where}")
        check_labels(found.tests, found.reads)
        labelled = [row for row in found.train if row["answer"].strip()] if found.is_own else []
        problems, reads = found.tests, found.reads
        if labelled and not problems:
            problems = {Path(name).stem: labelled}
            reads = {Path(name).stem: kind_of_answers(row["answer"] for row in labelled)}
        for line in reading_lines(problems, reads):
            print(f"  {line}")
        for test, rows in found.tests.items():
            answers = Counter(row["answer"].strip() for row in rows)
            print(
                f"  {test:13} {len(rows):,} problems, answers {', '.join(f'{answer} ({n})' for answer, n in answers.most_common(5))}"
                f"{' ...' if len(answers) > 5 else ''}"
            )
            shipped = [row for row in rows if (row.get("output") or "").strip()]
            if shipped:
                kind = found.reads.get(test, test)
                right = [
                    sum(
                        is_right(read_answer(row["output"], kind, mode), row["answer"])
                        for row in shipped
                    )
                    for mode in ("strict", "paper")
                ]
                print(
                    f"  {'':13} of its own texts the strict reader finds {right[0]:,} right, the paper's {right[1]:,}"
                )
        if source is None or source.trains:
            right = sum(reaches(row["output"], row["answer"]) for row in found.train)
            if any(row["answer"].strip() for row in found.train):
                print(
                    f"  rationales {right:,} of {len(found.train):,} reach the right answer (--only-right trains on these alone)"
                )
            leaks = leakage(
                found.train, found.tests, near=not found.from_forms, is_text=found.is_text
            )
            for test, leak in leaks.items():
                print(
                    f"  leakage    {test}: {leak.count('twin')} of {leak.total} test problems are in the training rows word for word, "
                    f"{leak.count('near')} nearly so"
                )
    if bad:
        raise UserError("; ".join(bad))
    return 0


def check_sums(name: str, data_dir: str) -> list[str]:
    """Print the sums of the files; what is wrong with them."""
    folder, wrong = Path(data_dir) if data_dir else cache_folder(), []
    for file in files_of(name):
        if not (folder / file.path).is_file():  # read in another form
            print(
                f"  sha256     {file.path} is not here: the rows were read from its later form, test.json"
            )
            continue
        found, known = sum_of(folder / file.path), file.sha256 or known_sums(folder).get(file.path)
        print(
            f"  sha256     {file.path} {found[:16]}... "
            + (
                "as pinned"
                if found == file.sha256
                else "unpinned"
                if not file.sha256
                else "NOT AS PINNED"
            )
        )
        if known and found != known:
            wrong.append(
                f"{folder / file.path} is not the file it should be (sha256 {found[:16]}..., not {known[:16]}...)"
            )
    return wrong


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
        found, counts = rows_from_log(log, options.keep_wrong)
        print(f"{log}: {', '.join(f'{count} {why}' for why, count in sorted(counts.items()))}")
        rows += found
    if not rows:
        raise UserError("no record was kept: nothing was written")
    make_folder(out.parent)
    write_text(out, json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    print(f"{len(rows)} rows in {out}; train on them with --data {out}")
    return 0


COMMANDS = {"data": add_data}
