"""What an adapter was trained on, run by run, from its file; and what of a test set it saw.

The `run` section of an adapter's file describes the run that wrote it. Its list `history` holds the
same of the runs before, the oldest first, where the adapter was trained further (--continue);
`loaded` the sections of the frozen adapters below it (--load), by name.
"""

from collections.abc import Sequence
from pathlib import Path

from data.leakage import Leak, leakage
from data.sources import EXPERIMENTS, SOURCES, is_here, known_name, load_data
from experiments.rows import only_right
from files.errors import UserError

LONG = ("history", "loaded", "template_text")  # keys that an entry of a history does not repeat
UNKNOWN = {"data": "", "adapter": ""}  # the entry of an adapter whose file does not say
UNCHECKED = "whether the adapter saw these problems was not checked"
Tests = dict[str, list[dict]]


def history_of(run: dict) -> list[dict]:
    """The runs that made an adapter, the oldest first, from the `run` section of its file."""
    before = run.get("history")
    entries = (
        [entry for entry in before if isinstance(entry, dict)] if isinstance(before, list) else []
    )
    return [*entries, {key: value for key, value in run.items() if key not in LONG} or UNKNOWN]


def short(run: dict) -> dict:
    """A `run` section as another one holds it under `loaded`."""
    return {key: value for key, value in run.items() if key not in ("loaded", "template_text")}


def history_text(run: dict) -> str:
    """A run that trained an adapter, from the `run` section of the adapter's file:
    "rows.jsonl, 300 steps, seed 0, template alpaca"."""
    data = run.get("data")
    if not isinstance(data, str) or not data:
        return "data that its file does not name"
    steps, seed, template = (run.get(key) for key in ("steps", "seed", "template"))
    parts = [
        f"{steps:,} steps" if type(steps) is int else "",
        f"seed {seed}" if type(seed) is int else "",
        f"template {template}" if isinstance(template, str) and template else "",
        "rows with right rationales only" if run.get("only_right") is True else "",
    ]
    return ", ".join(filter(None, [data, *parts]))


def seen_in_training(
    runs: list[dict], tests: Tests, data_dir: str, named: Sequence[str]
) -> tuple[list[dict[str, Leak]], list[str]]:
    """(for each run what of the tests it trained on, where that is known; notes).

    runs: `run` sections of adapters' files; their histories and loaded adapters are included.
    named: the files that the user named: no others are opened.
    """
    entries: list[dict] = []
    for run in runs:
        below = run.get("loaded")
        below = below.values() if isinstance(below, dict) else []
        for section in (*below, run):
            if isinstance(section, dict):
                entries += [entry for entry in history_of(section) if entry not in entries]
    leaks, notes = [], []
    for entry in entries:
        found, lines = seen_in(entry, tests, data_dir, len(entries) > 1, named)
        leaks += found
        notes += [line for line in lines if line not in notes]
    return leaks, notes


def held_out_seen(
    runs: list[dict], held_out: list[dict], data_dir: str, named: Sequence[str]
) -> list[str]:
    """Notes on how many of the rows that the loss is measured on these runs trained on."""
    rows = {"held-out rows": held_out}
    return seen_in_training(runs, rows, data_dir, named)[1] if held_out else []


def seen_in(
    run: dict, tests: Tests, data_dir: str, several: bool, named: Sequence[str]
) -> tuple[list[dict[str, Leak]], list[str]]:
    """`seen_in_training` of one run; several: the notes name its data."""
    name = run.get("data")
    if not isinstance(name, str) or not name:
        return [], [f"what an adapter was trained on is not known: {UNCHECKED}"]
    if name not in named and known_name(name) not in {*EXPERIMENTS, *SOURCES}:
        return [], [
            f"the training data {name!r:.200} is named by the adapter's file only, which is not "
            f"followed: {UNCHECKED}; give it with --data"
        ]
    if not is_here(name, data_dir):
        return [], [f"the training data {name} is not here: {UNCHECKED}"]
    try:
        chosen = {key: run[key] for key in ("columns", "test_share", "strict_rows") if key in run}
        where = "" if name == "wordproblems" or Path(name).is_file() else data_dir
        data = load_data(name, where, run.get("seed", 0), **chosen)
        data = only_right(data) if run.get("only_right") else data
    except (UserError, TypeError, ValueError, AttributeError) as error:
        reason = str(error)[:200]
        return [], [f"the training data {name} cannot be read as it was, {UNCHECKED}: {reason}"]
    notes = []
    if run.get("data_fingerprint") not in (None, data.fingerprint):
        notes.append(
            f"the training data {name} has changed since: what follows is about what it holds now"
        )
    leaks = leakage(data.train, tests, near=not data.from_forms, is_text=data.is_text)
    source = f" of {name}" if several else ""
    for test, leak in leaks.items():
        if leak.found:
            notes.append(
                f"{test}: the adapter was trained on {leak.count('twin')} of these {leak.total} "
                f"problems word for word{source}, on {leak.count('near')} nearly so"
            )
    return [leaks], notes
