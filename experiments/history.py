"""What an adapter was trained on, run by run, from what its file says; and what of a test set it saw.

The `run` section of an adapter's file describes the run that wrote it. Its list `history` holds the
same of the runs before, the oldest first, where the adapter was trained further (--continue);
`loaded` the sections of the frozen adapters below it (--load), by name.
"""

from pathlib import Path

from data.leakage import Leak, leakage
from data.sources import is_here, load_data
from experiments.rows import only_right
from experiments.text import history_text
from files.errors import UserError

LONG = ("history", "loaded", "template_text")  # what an entry of a history does not repeat
UNKNOWN = {"data": "", "adapter": ""}  # of an adapter whose file says nothing


def history_of(run: dict) -> list[dict]:
    """The runs that made an adapter, the oldest first, from the `run` section of its file; one
    that says nothing is an entry without data."""
    before = run.get("history")
    entries = [one for one in before if isinstance(one, dict)] if isinstance(before, list) else []
    return [*entries, {key: value for key, value in run.items() if key not in LONG} or UNKNOWN]


def short(run: dict) -> dict:
    """A `run` section without what can be left out of another one."""
    return {key: value for key, value in run.items() if key not in ("loaded", "template_text")}


def loaded_in(run: dict) -> list[dict]:
    """The `run` sections of the frozen adapters that an adapter was trained on top of."""
    loaded = run.get("loaded")
    return (
        [one for one in loaded.values() if isinstance(one, dict)]
        if isinstance(loaded, dict)
        else []
    )


def history_lines(history: list[dict]) -> list[str]:
    """A line for each run."""
    return [history_text(one) for one in history]


def seen_in_training(
    runs: list[dict], tests: dict[str, list[dict]], data_dir: str
) -> tuple[list[dict[str, Leak]], list[str]]:
    """(for each run what of the tests it trained on, where that can be known; what is to be said of
    it), from the `run` sections of adapters' files, their histories and loaded adapters included."""
    entries: list[dict] = []
    for run in runs:
        for one in (*loaded_in(run), run):
            entries += [entry for entry in history_of(one) if entry not in entries]
    found, said = [], []
    for entry in entries:
        leaks, lines = seen_in(entry, tests, data_dir, several=len(entries) > 1)
        found += leaks
        said += [line for line in lines if line not in said]
    return found, said


def held_out_seen(runs: list[dict], held_out: list[dict], data_dir: str) -> list[str]:
    """What is to be said of rows without answers that the loss is measured on: how many of them
    these runs trained on."""
    return seen_in_training(runs, {"held-out rows": held_out}, data_dir)[1] if held_out else []


def seen_in(
    run: dict, tests: dict[str, list[dict]], data_dir: str, several: bool
) -> tuple[list[dict[str, Leak]], list[str]]:
    """As `seen_in_training`, of one run of which no more than this is known."""
    name = run.get("data")
    if not isinstance(name, str) or not name:
        return [], [
            "what an adapter was trained on is not known: whether it saw these problems could not be checked"
        ]
    if not is_here(name, data_dir):
        return [], [
            f"the training data {name} is not here: whether the adapter saw these problems was not checked"
        ]
    try:
        chosen = {key: run[key] for key in ("columns", "test_share", "strict_rows") if key in run}
        where = "" if name == "wordproblems" or Path(name).is_file() else data_dir
        data = load_data(name, where, run.get("seed", 0), **chosen)
        data = only_right(data) if run.get("only_right") else data
    except (UserError, TypeError, ValueError, AttributeError) as error:
        return [], [
            f"the training data {name} cannot be read as it was, whether the adapter saw these problems was not checked: {str(error)[:200]}"
        ]
    said = []
    if run.get("data_fingerprint") not in (None, data.fingerprint):
        said.append(
            f"the training data {name} has changed since: what follows is about what it holds now"
        )
    leaks = leakage(data.train, tests, near=not data.from_forms, is_text=data.is_text)
    of = f" of {name}" if several else ""
    for one, leak in leaks.items():
        if leak.found:
            said.append(
                f"{one}: the adapter was trained on {leak.count('twin')} of these {leak.total} "
                f"problems word for word{of}, on {leak.count('near')} nearly so"
            )
    return [leaks], said
