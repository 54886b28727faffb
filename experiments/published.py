"""The published figures (published.toml), beside which ours are put."""

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from eval.score import Score


@dataclass(frozen=True)
class Table:
    """One published table: its sets in order, its rows, and what trains and names them here."""

    title: str
    about: str
    sets: tuple[str, ...]
    problems: list[int]  # of each set
    teacher: tuple[str, list[float]]  # its name, the figures and their average
    models: tuple[str, ...]  # those of the grid, as named here
    adapters: tuple[str, ...]  # the presets of the grid
    presets: dict[str, str]  # preset -> the table's word for it
    rows: dict[str, dict[str, list[float]]]  # model -> word -> figures and average

    def missing(self, found: dict[str, Score]) -> str:
        """Which sets were not measured whole, in words; "" where all were."""
        counts = {name: found[name].problems or found[name].total for name in self.sets}
        return ", ".join(
            f"{name} {counts[name]} of {whole}"
            for name, whole in zip(self.sets, self.problems, strict=True)
            if counts[name] != whole
        )

    def row(self, model: str, adapter: str) -> dict[str, float] | None:
        """Set -> percent, and "average"; None for what is not in the table. model: a name or a folder that ends in it."""
        figures = self.rows.get(Path(model).name, {}).get(self.presets.get(adapter, ""))
        return dict(zip((*self.sets, "average"), figures, strict=True)) if figures else None


@cache
def published() -> dict[str, Table]:
    """Data set of the training rows -> the table of those trained on it."""
    found = tomllib.loads((Path(__file__).parent / "published.toml").read_text(encoding="utf-8"))
    return {name: Table(**table) for name, table in found.items()}


def table_for(data: str) -> Table | None:
    """The table whose figures a run on this data compares with, if there is one."""
    return published().get(data)
