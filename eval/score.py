"""Accuracy of predictions, its table, and the file that predictions are kept in."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from data.distribution import by_distribution, leaking
from eval.table import Cell, Table
from files.errors import UserError
from files.typed import Range
from files.writing import write_text

Z = 1.959964  # of a 95% interval


@dataclass(frozen=True)
class Score:
    """`right` of `total` answers, to `problems` problems (0: as many as answers)."""

    right: Annotated[int, Range(0)]
    total: Annotated[int, Range(1)]  # 0 only of a part that is empty, which no file has
    problems: Annotated[int, Range(0)] = 0

    def check(self) -> None:
        """Raise UserError for figures of a file that cannot be."""
        if max(self.right, self.problems) > self.total:
            raise UserError(f"{self.right} right of {self.total} answers cannot be")

    @property
    def accuracy(self) -> float:
        return self.right / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval of the accuracy (Wilson 1927). Several answers to one problem do not
        make it narrower."""
        if not self.total:
            return 0.0, 1.0
        n, p, z = self.problems or self.total, self.accuracy, Z
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def cell(self) -> Cell:
        return percent_cell(self.accuracy, self.interval, f" of {self.total}")

    def table(self) -> dict:
        """The figures for result.json."""
        several = {"problems": self.problems} if self.problems not in (0, self.total) else {}
        return {
            "right": self.right,
            "total": self.total,
            **several,
            "accuracy": round(self.accuracy, 4),
            "interval_95": [round(end, 4) for end in self.interval],
        }


def percent_cell(share: float, interval: tuple[float, float], after: str = "") -> Cell:
    low, high = (100 * end for end in interval)
    return Cell(f"{100 * share:.1f}%", f"[{low:.1f}, {high:.1f}]{after}", bar=share)


def scores(predictions: list[dict], key: str = "right") -> dict[str, Score]:
    """The Score of each data set, in order of appearance.

    key: "right" counts the strict reader's answers, "paper_right" those of the paper's.
    """
    right: dict[str, list[bool]] = {}
    problems: dict[str, set[int]] = {}
    for prediction in predictions:
        right.setdefault(prediction["set"], []).append(prediction[key])
        problems.setdefault(prediction["set"], set()).add(prediction["index"])
    return {name: Score(sum(r), len(r), len(problems[name])) for name, r in right.items()}


def mean_score(by_set: dict[str, Score]) -> tuple[float, float, float]:
    """(plain mean of the accuracies, as in the paper; low, high: its 95% interval).

    The sets are taken as independent.
    """
    mean = sum(score.accuracy for score in by_set.values()) / len(by_set)
    intervals = [score.interval for score in by_set.values()]
    half = math.sqrt(sum(((high - low) / 2) ** 2 for low, high in intervals)) / len(by_set)
    return mean, max(0.0, mean - half), min(1.0, mean + half)


def means(by_set: dict[str, Score], data: str = "") -> dict[str, tuple[float, float, float]]:
    """`mean_score` of all sets, "average", and of those in and out of the distribution of the
    training data `data`, where both are there."""
    groups = by_distribution(data, by_set)
    found = {name: {one: by_set[one] for one in sets} for name, sets in groups.items()}
    return {name: mean_score(sets) for name, sets in ({"average": by_set} | found).items() if sets}


def set_names(data: str, sets: Iterable[str]) -> dict[str, str]:
    """Test set -> its name in a table, with a mark where the training data holds its problems."""
    leaks = leaking(data, sets := list(sets))
    return {name: f"{name} (leaks)" if name in leaks else name for name in sets}


def score_table(
    before: list[dict], after: list[dict], title: str, before_title: str = "base", data: str = ""
) -> Table:
    """A row for each test set and their means; columns: `before` (where measured), `after`.

    Both by the strict reader; then the clean part of `after`, where training saw some of the
    problems, and `after` by the paper's reader. data: what the adapter was trained on.
    """
    columns = {before_title: scores(before)} if before else {}
    columns[title] = scores(after)
    if len(clean(after)) < len(after):
        columns["clean part"] = scores(clean(after))
    columns["paper's reader"] = scores(after, "paper_right")
    sets = list(columns[title])
    rows = [
        [shown, *(c[name].cell() if name in c else "none is clean" for c in columns.values())]
        for name, shown in set_names(data, sets).items()
    ]
    by_column = [means(column, data) for column in columns.values()]
    for name in means(columns[title], data) if len(sets) > 1 else ():
        found = [column.get(name) for column in by_column]
        cells = [percent_cell(m[0], m[1:]) if m else "none is clean" for m in found]
        rows.append([name, *cells])
    return Table(("test set", *columns), rows)


def mark_leaks(predictions: list[dict], leaks: dict) -> None:
    """Note "twin" or "near" as the `leak` of each prediction whose problem training saw."""
    for prediction in predictions:
        leak = leaks.get(prediction["set"])
        if leak and prediction["index"] in leak.found:
            prediction["leak"] = leak.found[prediction["index"]][0]


def clean(predictions: list[dict]) -> list[dict]:
    """The predictions of problems that training did not see."""
    return [prediction for prediction in predictions if "leak" not in prediction]


def tables(predictions: list[dict]) -> dict[str, dict]:
    """Data set -> its figures for result.json: those of the strict reader, the paper's reader, the
    clean part where there is a leak, and how many answers were cut off or too long."""
    found = {name: score.table() for name, score in scores(predictions).items()}
    for name, score in scores(predictions, "paper_right").items():
        found[name]["paper_reader"] = score.table()
    for name, score in scores(clean(predictions)).items():
        if score.total < found[name]["total"]:
            found[name]["clean_part"] = score.table()
    for prediction in predictions:
        table = found[prediction["set"]]
        table["cut_off"] = table.get("cut_off", 0) + prediction.get("cut", False)
        if prediction.get("too_long"):
            table["too_long"] = table.get("too_long", 0) + 1
    return found


FIELDS = {  # that every prediction has
    **dict.fromkeys(("set", "instruction", "prompt", "output", "gold"), str),
    **dict.fromkeys(("answer", "paper_answer"), float | str | None),
    **dict.fromkeys(("right", "paper_right"), bool),
    "index": int,
}


def read_predictions(path: Path) -> list[dict]:
    """What `write_predictions` wrote. Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
        found = [json.loads(line) for line in text.split("\n") if line]
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as predictions: {str(error)[:200]}") from None
    answered = set()
    for number, prediction in enumerate(found, start=1):
        where = f"{path}, line {number} is not a prediction"
        if not isinstance(prediction, dict):
            raise UserError(where)
        for key, kind in FIELDS.items():
            value = prediction.get(key, ...)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                raise UserError(f"{where}: {key} is missing or has another type")
        if not are_likelihoods(prediction.get("likelihoods", {})):
            raise UserError(f"{where}: likelihoods should be numbers")
        if type(prediction.get("seed", 0)) is not int:
            raise UserError(f"{where}: seed should be a whole number")
        answer = prediction["set"], prediction["index"], prediction.get("seed")
        if answer in answered:
            raise UserError(f"{path}, line {number}: a second answer to {answer[0]} {answer[1]}")
        answered.add(answer)
    return found


def are_likelihoods(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(one, float) for one in value.values())


def write_predictions(path: Path, predictions: list[dict]) -> None:
    """One JSON object a line."""
    lines = (json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions)
    write_text(path, "".join(lines))
