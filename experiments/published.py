"""The published figures (published.toml), and ours beside them."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from eval.score import Score, mean_score, scores
from eval.table import Cell, Table

SPELLED = {"gsm8k": "GSM8K", "mawps": "MAWPS"}  # data set -> its name in tables
Figures = dict[str, float]  # data set and "average" -> percent


@dataclass(frozen=True)
class Published:
    """One published table: its sets in order, its rows, and the names of its models here."""

    title: str
    about: str
    sets: tuple[str, ...]
    problems: list[int]  # of each set
    teacher: tuple[str, list[float]]  # its name, the figures and their average
    models: tuple[str, ...]  # those of the grid, as named here
    adapters: tuple[str, ...]  # the presets of the grid
    presets: dict[str, str]  # preset -> the table's word for it
    rows: dict[str, dict[str, list[float]]]  # model -> word -> figures and average

    def missing(self, measured: dict[str, Score]) -> str:
        """The sets that were measured in part, such as "gsm8k 2 of 264"; "" where none was."""
        counts = {name: measured[name].problems or measured[name].total for name in self.sets}
        return ", ".join(
            f"{name} {counts[name]} of {whole}"
            for name, whole in zip(self.sets, self.problems, strict=True)
            if counts[name] != whole
        )

    def row(self, model: str, adapter: str) -> Figures | None:
        """The figures of a model (a name, or a folder that ends in it) with a preset, if any."""
        figures = self.rows.get(Path(model).name, {}).get(self.presets.get(adapter, ""))
        return self.figures(figures) if figures else None

    def figures(self, values: Sequence[float]) -> Figures:
        return dict(zip((*self.sets, "average"), values, strict=True))


@cache
def published() -> dict[str, Published]:
    """Data set of the training rows -> the table of models trained on it."""
    text = (Path(__file__).parent / "published.toml").read_text(encoding="utf-8")
    return {name: Published(**table) for name, table in tomllib.loads(text).items()}


def table_for(data: str) -> Published | None:
    """The table that a run on this data compares with, if there is one."""
    return published().get(data)


def beside_published(
    data: str, model: str, adapter: str, predictions: list[dict]
) -> tuple[Table | None, list[str]]:
    """(our figures above those of the published table, notes); (None, []) where there is none.

    The difference is given where the table has this model and adapter and all of its problems were
    measured.
    """
    table, strict = table_for(data), scores(predictions)
    if table is None or not set(table.sets) <= strict.keys():
        return None, []
    paper = percents(scores(predictions, "paper_right"), table.sets)
    rows = {"ours, strict": percents(strict, table.sets), "ours, the paper's reader": paper}
    row, word, name = table.row(model, adapter), table.presets.get(adapter), Path(model).name
    if row:
        rows[f"published, {name} {word}"] = row
    elif name in table.rows:
        for other, values in table.rows[name].items():
            rows[f"published, {name} {other}"] = table.figures(values)
    else:
        for other in table.rows:
            if values := table.row(other, adapter):
                rows[f"published, {other} {word}"] = values
    if not row:
        rows[f"published, {table.teacher[0]}"] = table.figures(table.teacher[1])
    about = table.about.partition("; ")[0]  # the rest is about the teacher's row
    notes = f"The published figures are {about if row else table.about}."
    if not row:
        which = f"with {adapter}" if adapter else "without an adapter"
        notes += f" They have no row for {name} {which}."
    partial = table.missing(strict)
    if row and not partial:
        rows["difference"] = {key: paper[key] - value for key, value in row.items()}
    fewer = f"Ours are of fewer problems, so that no difference is given: {partial}."
    return figures_table(table.title, rows), [notes, *([fewer] if partial else [])]


def figures_table(title: str, rows: dict[str, Figures], digits: int = 1) -> Table:
    """A column for each set and their average, a line for each row, in percent."""
    names = list(next(iter(rows.values())))
    cells = [
        [
            Cell(name),
            *(Cell(f"{row[key]:{'+' if name == 'difference' else ''}.{digits}f}") for key in names),
        ]
        for name, row in rows.items()
    ]
    return Table((title, *(SPELLED.get(key, key) for key in names)), cells)


def percents(measured: dict[str, Score], sets: Sequence[str]) -> Figures:
    """The accuracies of these sets and their plain mean, in percent."""
    chosen = {name: measured[name] for name in sets}
    figures = {name: 100 * score.accuracy for name, score in chosen.items()}
    return figures | {"average": 100 * mean_score(chosen)[0]}
