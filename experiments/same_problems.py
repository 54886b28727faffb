"""Runs that were measured on the same problems, and which of their answers are right."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from experiments.inspect import predictions_in
from experiments.results import Result, read_result
from files.errors import UserError
from files.toml import flat, read_toml

OF_MACHINE = (
    "device",
    "threads",
    "layers_per_device",
    "data_dir",
    "eval.batch_size",
    "eval.graphs",
)
Shares = dict[str, np.ndarray]  # test set -> the share of right answers to each of its problems
Problem = tuple[str, int]  # test set and index


@dataclass(frozen=True)
class Run:
    """A run or an evaluation, as its folder has it."""

    name: str
    predictions: list[dict]
    settings: dict = field(default_factory=dict)  # path -> value; empty for a lone file
    result: Result | None = None


def read_run(path: Path, name: str) -> Run:
    """Raises UserError."""
    predictions = predictions_in(path)
    if not predictions:
        raise UserError(f"{path} has no predictions: its data has no test set")
    settings, result = {}, None
    if path.is_dir():
        for file in ("run.toml", "evaluate.toml"):
            settings = settings or (flat(read_toml(path / file)) if (path / file).is_file() else {})
        result = read_result(path) if (path / "result.json").is_file() else None
    return Run(name, predictions, settings, result)


def names_of(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, or the whole path where that is not unique. Raises UserError."""
    if twice := [path for path in paths if [p.resolve() for p in paths].count(path.resolve()) > 1]:
        raise UserError(f"{twice[0]} is given twice")
    short = [path.resolve().name for path in paths]
    return [
        name if short.count(name) == 1 else str(path)
        for name, path in zip(short, paths, strict=True)
    ]


def check_same_problems(first: Run, second: Run) -> None:
    """Raise UserError, naming what differs, unless both were measured on the same problems."""
    texts = [
        {(p["set"], p["index"]): (p["instruction"], p["gold"]) for p in run.predictions}
        for run in (first, second)
    ]
    why = f"{first.name} and {second.name} were not measured on the same problems"
    sets = [list(dict.fromkeys(name for name, _ in one)) for one in texts]
    if set(sets[0]) != set(sets[1]):
        raise UserError(f"{why}: test sets {', '.join(sets[0])} and {', '.join(sets[1])}")
    for name in sets[0]:
        indices = [{index for of, index in one if of == name} for one in texts]
        if indices[0] != indices[1]:
            odd = min(indices[0] ^ indices[1])
            counts = f"{len(indices[0])} and {len(indices[1])} problems"
            raise UserError(f"{why}: {name} has {counts}; only one of them has problem {odd}")
    for (name, index), text in texts[0].items():
        if texts[1][name, index] != text:
            part = "text" if texts[1][name, index][0] != text[0] else "label"
            raise UserError(f"{why}: {name} {index} has another {part}")


def leaked_in(runs: Iterable[Run]) -> set[Problem]:
    """The problems that the training of any of the runs has seen."""
    return {(p["set"], p["index"]) for run in runs for p in run.predictions if "leak" in p}


def right_shares(predictions: list[dict], reader: str, without: Collection[Problem] = ()) -> Shares:
    """The share of right answers to each problem by this reader, problems in order.

    Raises UserError where no problem is left.
    """
    key = "right" if reader == "strict" else "paper_right"
    found: dict[str, dict[int, list[bool]]] = {}
    for p in predictions:
        if (p["set"], p["index"]) not in without:
            found.setdefault(p["set"], {}).setdefault(p["index"], []).append(p[key])
    if not found:
        raise UserError("no problem is left: training has seen all of them")
    return {
        name: np.array([np.mean(of[index]) for index in sorted(of)])
        for name, of in sorted(found.items())
    }


def differing_settings(runs: Sequence[Run]) -> dict[str, list]:
    """Setting -> its value in each run, of those that differ; without those of the machine."""
    found = {}
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        values = [run.settings.get(key, "") for run in runs]
        if key not in OF_MACHINE and any(value != values[0] for value in values):
            found[key] = values
    return found
