"""The table of a grid: what its runs reached, beside the published figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.distribution import IN, OUT, by_distribution
from eval.score import Score, means, set_names
from eval.table import Cell, Table
from experiments.axes import short, value_text
from experiments.entries import Entry, axes_of
from experiments.page import page, paragraph
from experiments.plots import plots
from experiments.published import SPELLED, Published
from experiments.results import loss_text
from files.writing import write_text

HEADS = ("model", "adapter")  # then the axes of the grid, then these
COSTS = ("parameters", "loss", "held-out loss")
CSV_HEADS = (
    *("model", "quantize", "adapter", "seed", "parameters"),
    *("loss, first 10 steps", "loss, last 10 steps", "seconds", "set", "reader"),
    *("accuracy", "low", "high", "total", "published", "difference"),
    *("held-out loss, before", "held-out loss, after"),
)
ABOUT = {  # what a reader or a column of the table is
    "strict": "the answer that a text states, with the 95% interval",
    "paper": "the same answers as the paper's code read them",
    "published": "the published row with the same adapter, data, loss weight and test sets",
    "difference": "paper minus published, bold where the published figure lies outside the 95% "
    "interval of ours",
    "mean of seeds": "in brackets the lowest and the highest",
    "loss": "mean of the first and of the last ten steps",
    IN: "mean of the sets whose training part is in the data; leaking sets are in neither",
    OUT: "mean of the other sets",
    "held-out loss": "nats per token on rows kept out of training",
}


@dataclass(frozen=True)
class Line:
    """A line of the table: an entry by one reader, its published figures, or a mean of seeds."""

    entry: Entry
    reader: str  # strict | paper | published | difference | mean of N seeds
    figures: dict[str, tuple[float, ...]]  # set or "average" -> percent, or percent, low, high
    seeds: int  # runs of this model and adapter
    sets: tuple[str, ...] = ()  # that a published average is over

    def heads(self, axes: Sequence[str]) -> list[str]:
        """Model, adapter, the axes, parameters, loss and held-out loss, on the first line of an
        entry."""
        e = self.entry
        if self.reader in ("paper", "published", "difference"):
            return [""] * (len(HEADS) + len(axes) + len(COSTS))
        single = self.reader == "strict"
        seed = f", seed {e.seed}" if single and self.seeds > 1 else ""
        return [
            Path(e.model).name + f", {e.quantize}" * bool(e.quantize),
            (e.adapter or "none") + seed,
            *(value_text(e.values[path]) if path in e.values else "" for path in axes),
            f"{e.parameters:,}",
            f"{e.losses[0]:.3f} to {e.losses[1]:.3f}" if e.losses and single else "",
            loss_text(e.held_out) if single else "",
        ]

    def cell(self, name: str) -> Cell:
        if name not in self.figures:
            return Cell()
        value, *interval = self.figures[name]
        sign = "+" if self.reader == "difference" else ""
        shown = interval and self.reader != "paper"
        detail = f"[{interval[0]:.1f}, {interval[1]:.1f}]" if shown else ""
        return Cell(f"{value:{sign}.1f}", detail, marked=self.is_outside(name))

    def is_outside(self, name: str) -> bool:
        """Whether this is a difference whose published figure is outside the interval of ours."""
        if self.reader != "difference":
            return False
        measured = {key: self.entry.paper[key] for key in self.sets}
        ours, low, high = percent(measured, self.entry.data)[name]
        return not low <= ours - self.figures[name][0] <= high


def percent(scores: dict[str, Score], data: str) -> dict[str, tuple[float, float, float]]:
    """Set and the means of several -> accuracy and its 95% interval, in percent."""
    shares = {name: (score.accuracy, *score.interval) for name, score in scores.items()}
    shares |= means(scores, data)
    return {name: tuple(100 * value for value in values) for name, values in shares.items()}


def lines_of(entries: Sequence[Entry]) -> list[Line]:
    """The lines of each entry: strict, paper, published, difference; the last two for each
    published row it can be compared with. Above the first of several seeds their mean."""
    lines = []
    for e in entries:
        same = [other for other in entries if other.same == e.same]
        if len(same) > 1 and same[0] is e and e.strict:
            lines.append(Line(e, f"mean of {len(same)} seeds", spread(same), len(same)))
        for reader, scores in e.readings().items():
            lines.append(Line(e, reader, percent(scores, e.data), len(same)))
        for row, sets in e.comparable():
            ours = percent({name: e.paper[name] for name in sets}, e.data)
            figures = {name: (value,) for name, value in row.items()}
            lines.append(Line(e, "published", figures, len(same)))
            figures = {name: (ours[name][0] - value,) for name, value in row.items()}
            lines.append(Line(e, "difference", figures, len(same), tuple(sets)))
    return lines


def spread(same: Sequence[Entry]) -> dict[str, tuple[float, float, float]]:
    """Set and means -> mean, lowest and highest of several seeds, where all have the set."""
    figures = [{name: one[0] for name, one in percent(e.strict, e.data).items()} for e in same]
    by_set = {
        name: [one[name] for one in figures]
        for name in figures[0]
        if all(name in one for one in figures)
    }
    return {name: (sum(v) / len(v), min(v), max(v)) for name, v in by_set.items()}


def summary(entries: Sequence[Entry], table: Published | None) -> Table:
    """The table of a grid: a row for each line, a column for each set and their average."""
    names = list(dict.fromkeys(name for e in entries for name in e.strict))
    first = [name for name in table.sets if name in names] if table else []
    found = {name for e in entries for name in means(e.strict, e.data)}
    sets = [*first, *(name for name in names if name not in first)]
    sets += [name for name in ("average", IN, OUT) if name in found]
    axes = axes_of(entries)
    costs = COSTS if any(e.held_out for e in entries) else COSTS[:-1]
    heads = (*HEADS, *map(short, axes), *costs)
    rows = [
        [*line.heads(axes)[: len(heads)], line.reader, *(line.cell(name) for name in sets)]
        for line in lines_of(entries)
    ]
    marked = {k: v for e in entries for k, v in set_names(e.data, names).items() if k != v}
    spelled = (marked.get(name, SPELLED.get(name, name)) for name in sets)
    return Table((*heads, "", *spelled), rows, names=len(heads) + 1)


def long_table(entries: Sequence[Entry]) -> Table:
    """The figures of a grid for programs: a row for each entry, reader and set."""
    rows, axes = [], axes_of(entries)
    for line in lines_of(entries):
        e = line.entry
        if line.reader not in ("strict", "paper"):
            continue
        row, of_row = next(iter(e.comparable()), ({}, []))
        run = (e.model, e.quantize, e.adapter or "none", e.seed, e.parameters)
        run += (*(e.losses or (None, None)), e.seconds)
        held_out = (e.held_out.get("before", e.held_out.get("loss")), e.held_out.get("after"))
        scores = e.readings()[line.reader]
        totals = {name: score.total for name, score in scores.items()}
        groups = {"average": list(scores)} | by_distribution(e.data, scores)
        totals |= {group: sum(totals[name] for name in of) for group, of in groups.items()}
        for name, figures in (line.figures or {"": (None, None, None)}).items():
            published, difference = row.get(name), None
            if name in groups and set(of_row) != set(scores):
                published = None  # ours is over other sets
            if published is not None:
                difference = round(figures[0] - published, 2)
            rounded = (None if figure is None else round(figure, 2) for figure in figures)
            total = totals[name] if name else None
            values = (*run, name, line.reader, *rounded, total, published, difference, *held_out)
            values += tuple(value_text(e.values[path]) if path in e.values else "" for path in axes)
            rows.append(["" if value is None else str(value) for value in values])
    return Table((*CSV_HEADS, *axes), rows)


def write_table(folder: Path, entries: Sequence[Entry], table: Published | None) -> None:
    """folder/table.md, table.html, table.csv (a row for each set and reader), and plots as SVG."""
    wide = summary(entries, table)
    notes = published_notes(entries)
    drawn = plots(entries)
    for name, picture in drawn.items():
        write_text(folder / name, picture)
    lines = [*(f"![{Path(name).stem}]({name})" for name in drawn), *notes]
    write_text(folder / "table.md", wide.to_markdown() + "".join(f"\n{line}\n" for line in lines))
    pictures = "".join(f'<div class="scroll plots">{picture}</div>' for picture in drawn.values())
    write_text(folder / "table.html", html_page(wide, lines_of(entries), notes, pictures))
    write_text(folder / "table.csv", long_table(entries).to_csv())


def published_notes(entries: Sequence[Entry]) -> list[str]:
    """For each model and adapter, what it has in common with the nearest published row."""
    notes = {}
    for e in entries:
        if not e.published or not e.adapter:
            continue
        row = e.published[0]  # the nearest
        note = f"comparable with {row.row}"
        if not row.comparable:
            note = f"not {note}: {row.differs}"
        notes[f"{Path(e.model).name} {e.adapter} is {note}."] = None
    return list(notes)


def html_page(
    wide: Table, lines: Sequence[Line], published: Sequence[str], pictures: str = ""
) -> str:
    """table.html: the plots, the table, and what those of its readers and columns are that it
    has."""
    there = {"mean of seeds" if line.seeds > 1 else line.reader for line in lines} | set(wide.heads)
    there |= {line.reader for line in lines}
    notes = [f"{name}: {text}" for name, text in ABOUT.items() if name in there]
    about = (
        "Points are means of the test sets, bars their 95% intervals over the problems, small dots "
        "single seeds."
    )
    body = pictures + paragraph(about * bool(pictures), small=True)
    body += wide.to_html() + paragraph("; ".join(notes) + ".", small=True)
    body += "".join(paragraph(note, small=True) for note in published)
    title = "Accuracy in percent" if len(wide.heads) > wide.names else "Held-out loss"
    return page(title, body, wide=True)
