"""A table of measurements that is written as it grows: Markdown, JSON and a plot."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

from eval.table import Cell, Table
from files.writing import make_folder, write_text


class Report:
    """Rows of facts and their table; each new row is on the disk before the next is measured."""

    def __init__(
        self,
        title: str,
        out: str,
        facts: dict,
        heads: tuple[str, ...],
        cells: Callable[[dict], list[str]],
    ):
        """facts: of the machine and the work. cells: a row of facts -> its texts under `heads`."""
        self.title, self.facts, self.heads, self.cells = title, facts, heads, cells
        self.rows: list[dict] = []
        self.notes: list[str] = []
        self.folder = Path(out)
        make_folder(self.folder)

    def add(self, row: dict) -> str:
        """Keep a row and write the files; returns the row as a line."""
        self.rows.append(row)
        self.write()
        return "; ".join(
            f"{head} {text}" if number else text
            for number, (head, text) in enumerate(zip(self.heads, self.cells(row), strict=True))
            if text and text != "-"
        )

    def note(self, text: str) -> None:
        self.notes.append(text)
        self.write()

    def table(self) -> Table:
        rows = [[Cell(text) for text in self.cells(row)] for row in self.rows]
        return Table(self.heads, rows)

    def machine_line(self) -> str:
        return "; ".join(f"{key} {value}" for key, value in self.facts.items())

    def lines(self) -> list[str]:
        """The whole table as text, and where the files are."""
        return ["", *self.table().to_text(), "", *self.notes, f"written to {self.folder}"]

    def write(self) -> None:
        content = {"title": self.title, "facts": self.facts, "notes": self.notes, "rows": self.rows}
        write_text(self.folder / "benchmark.json", json.dumps(content, indent=1) + "\n")
        notes = "".join(f"\n{note}\n" for note in self.notes)
        write_text(
            self.folder / "benchmark.md",
            f"# {self.title}\n\n{self.machine_line()}\n\n{self.table().to_markdown()}{notes}",
        )

    def plot(self, draw: Callable) -> None:
        """Write benchmark.png: draw(matplotlib.figure.Figure, rows). Without matplotlib, a note."""
        if importlib.util.find_spec("matplotlib") is None:
            self.note("no plot: pip install matplotlib")
            return
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 1.5 + 0.3 * len(self.rows)), layout="constrained")
        draw(figure, self.rows)
        figure.savefig(self.folder / "benchmark.png", dpi=150)


def is_wanted(name: str, only: str) -> bool:
    """Whether a name holds one of the words of --only, which commas separate."""
    return any(word.strip() in name for word in only.split(","))


def megabytes(size: float | None) -> str:
    return "-" if not size else f"{size / 1e6:,.0f}"


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"
