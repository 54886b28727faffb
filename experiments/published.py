"""The published figures: a table of results a file of published_tables/, with its conditions."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import fmean

from adapters.config import AdapterConfig, resolve
from data.sources import source_rows
from eval.answers import MODES, is_right, read_answer
from eval.score import Score, mean_score
from eval.table import Table
from files.toml import read_toml
from files.typed import from_table, typed_values

SPELLED = {"gsm8k": "GSM8K", "mawps": "MAWPS"}  # data set -> its name in tables
Figures = dict[str, float]  # data set and "average" -> percent


@dataclass(frozen=True)
class Training:
    """How a published row was trained and measured; None or "": its source does not say."""

    prompt_weight: float | None = None  # loss weight of prompt tokens
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    seeds: int | None = None
    reader: str = ""  # "paper": answers were read by the paper's code
    best_on_test: str = ""  # "yes": the best epoch was chosen on the test sets
    notes: list[str] = field(default_factory=list)  # doubts, other figures for the same row

    def text(self) -> str:
        """As far as it is known: "3 epochs, batches of 16, learning rate 0.0003, 1 seed"."""
        known = (
            (self.epochs, f"{self.epochs} epochs"),
            (self.batch_size, f"batches of {self.batch_size}"),
            (self.learning_rate, f"learning rate {self.learning_rate}"),
            (self.seeds, f"{self.seeds} seed{'s' * (self.seeds != 1)}"),
            (self.reader == "paper", "answers read by the paper's code"),
            (self.best_on_test == "yes", "the best epoch chosen on the test sets"),
        )
        return ", ".join(text for value, text in known if value)


@dataclass(frozen=True)
class Published:
    """One published table.

    problems: of each set. teacher: the name and the figures of the model whose answers are the
    training data. models, grid: the models and presets that `run.py table` runs by default.
    adapters: word of the table -> what it is here. of: word -> where its training is another.
    leaks: sets that the training data holds problems of. rows: model, word -> figures, average;
    of some tables the average alone. parameters: model, word -> as printed, "4.2M" or "0.826%".
    """

    data: str
    title: str
    about: str
    source: str
    sets: tuple[str, ...]
    problems: list[int]
    rows: dict[str, dict[str, list[float]]]
    teacher: tuple[str, list[float]] = ("", [])
    models: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    leaks: tuple[str, ...] = ()
    training: Training = Training()
    adapters: dict[str, dict] = field(default_factory=dict)
    of: dict[str, dict] = field(default_factory=dict)
    parameters: dict[str, dict[str, str]] = field(default_factory=dict)

    def missing(self, measured: dict[str, Score]) -> str:
        """The sets that were measured in part, such as "gsm8k 2 of 264"; "" where none was."""
        counts = {name: measured[name].problems or measured[name].total for name in self.sets}
        return ", ".join(
            f"{name} {counts[name]} of {whole}"
            for name, whole in zip(self.sets, self.problems, strict=True)
            if counts[name] != whole
        )

    def figures(self, values: Sequence[float]) -> Figures:
        if len(values) == 1:
            return {"average": values[0]}
        return dict(zip((*self.sets, "average"), values, strict=True))

    def rows_of(self, model: str) -> list["Row"]:
        """The rows of a model: a name, or a folder that ends in it."""
        name = Path(model).name
        return [
            Row(self, name, word, self.figures(values))
            for word, values in self.rows.get(name, {}).items()
        ]


@dataclass(frozen=True)
class Row:
    """One row of a published table."""

    table: Published
    model: str
    word: str  # the table's name of the adapter
    figures: Figures

    @property
    def adapter(self) -> AdapterConfig | None:
        """The adapter of the row; None for a method that is not here."""
        table = self.table.adapters.get(self.word)
        return resolve(dict(table)) if table else None

    @property
    def training(self) -> Training:
        changes = typed_values(Training, self.table.of.get(self.word, {}), self.table.title)
        return replace(self.table.training, **changes)

    def notes(self) -> list[str]:
        """How the row was made, where it stands, and what is doubtful about it."""
        printed = self.table.parameters.get(self.model, {}).get(self.word, "")
        printed = f"{printed} parameters" * bool(printed)
        made = ", ".join(filter(None, [printed, self.training.text(), self.table.about]))
        return [f"published with {made}; {self.table.source}", *self.training.notes]


@cache
def published() -> dict[str, Published]:
    """The tables by the name of their file."""
    folder = Path(__file__).parent / "published_tables"
    return {
        path.stem: from_table(Published, read_toml(path), str(path))
        for path in sorted(folder.glob("*.toml"))
    }


def table_for(data: str) -> Published | None:
    """The paper's table of models trained on this data, whose rows `run.py table` repeats."""
    return published().get(data)


def tables_for(data: str) -> list[Published]:
    """All tables of models trained on this data, the paper's last one first."""
    tables = [table for table in published().values() if table.data == data]
    return sorted(tables, key=lambda table: not table.grid)


def figures_table(title: str, rows_of: dict[str, Figures], digits: int = 1) -> Table:
    """A column for each set and their average, a line for each row, in percent."""
    names = list(next(iter(rows_of.values())))
    rows = []
    for name, row in rows_of.items():
        sign = "+" if name == "difference" else ""
        rows.append([name, *(f"{row[key]:{sign}.{digits}f}" for key in names)])
    return Table((title, *(SPELLED.get(key, key) for key in names)), rows)


def percents(measured: dict[str, Score], sets: Sequence[str]) -> Figures:
    """The accuracies of these sets and their plain mean, in percent."""
    chosen = {name: measured[name] for name in sets}
    figures = {name: 100 * score.accuracy for name, score in chosen.items()}
    return figures | {"average": 100 * mean_score(chosen)[0]}


def teacher_lines(data_dir: str = "") -> list[str]:
    """The rationales of the six math sets, by both readers, beside the row of the model that wrote
    them. Raises UserError where the data is missing."""
    table, rows = published()["math-v1"], {}
    sets = {name: source_rows(name, data_dir) for name in table.sets}
    for mode, title in zip(MODES, ("strict", "the paper's reader"), strict=True):
        shares = [
            100 * fmean(is_right(read_answer(r["output"], name, mode), r["answer"]) for r in of)
            for name, of in sets.items()
        ]
        rows[f"rationales, {title}"] = table.figures([*shares, fmean(shares)])
    writer, figures = table.teacher
    rows[f"published, {writer}"] = table.figures(figures)
    return [
        *figures_table("over the full sets", rows, digits=2).to_text(),
        "The published row does not follow from the rationales that were published with the data: "
        "both readers score them higher on every set.",
        "The readers differ most in AQuA, where the paper's takes the first capital A to E of a "
        'text, even that of "Answer".',
    ]
