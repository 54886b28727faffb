"""A grid of runs, one resumable job after another, and the table of what came of them, beside the published figures."""

import csv
import html
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

from eval.score import Score, mean_score
from experiments.jobs import Job
from experiments.published import Table
from experiments.report import STYLE, read_log
from experiments.text import NAMES, loss_text, percents
from files.errors import UserError
from files.writing import write_text

COLUMNS = (
    "model",
    "quantize",
    "adapter",
    "seed",
    "parameters",
    "loss, first 10 steps",
    "loss, last 10 steps",
    "seconds",
    "set",
    "reader",
    "accuracy",
    "low",
    "high",
    "total",
    "published",
    "difference",
    "held-out loss, before",
    "held-out loss, after",
)


@dataclass(frozen=True)
class Entry:
    """What came of a job: scores by set, read strictly and as the paper did; of a run the trained parameters and losses as well."""

    model: str
    adapter: str
    seed: int
    strict: dict[str, Score]
    paper: dict[str, Score]
    seconds: int = 0
    parameters: int = 0
    losses: tuple[float, float] | None = (
        None  # mean of the first and of the last steps, ten each where there are twenty
    )
    quantize: str = ""  # how the base was stored
    held_out: dict = field(
        default_factory=dict
    )  # {before, after} of a run, {loss} of a model alone: nats per token, where there is no test set
    wrong: tuple[
        str, ...
    ] = ()  # what went wrong, where that left nothing to show (experiments/verdict.py)


def entry(job: Job) -> Entry:
    """The Entry of a job that is done. Raises UserError."""
    try:
        facts = json.loads((job.folder / "result.json").read_text(encoding="utf-8"))
        tables = facts["after" if job.adapter else "scores"]
        strict = {
            name: Score(table["right"], table["total"], table.get("problems", 0))
            for name, table in tables.items()
        }
        paper = {
            name: Score(table["paper_reader"]["right"], table["total"], table.get("problems", 0))
            for name, table in tables.items()
        }
        held_out = dict(facts.get("held_out_loss", {}))
        if not job.adapter:
            return Entry(
                job.model,
                "",
                job.seed,
                strict,
                paper,
                quantize=facts.get("quantize", ""),
                held_out=held_out,
            )
        losses = [
            line["loss"] for line in read_log(job.folder / "log.jsonl") if line["loss"] is not None
        ]
        part = max(1, min(10, len(losses) // 2))
        ends = (sum(losses[:part]) / part, sum(losses[-part:]) / part)
        figures = facts["seconds"], facts["trainable_parameters"], ends, facts.get("quantize", "")
        wrong = tuple(map(str, facts.get("problems", []))) if facts.get("status") else ()
        return Entry(job.model, job.adapter, job.seed, strict, paper, *figures, held_out, wrong)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"{job.folder} is not a complete run ({type(error).__name__}: {error}): remove it and start the table again"
        ) from None


@dataclass(frozen=True)
class Line:
    """A line of the table. cells: set or "average" -> percent, or (percent, low, high)."""

    entry: Entry
    reader: str  # strict | paper | published | difference | mean of N seeds
    cells: dict[str, float | tuple[float, float, float]]
    seeds: int  # how many runs of this model and adapter there are

    @property
    def head(self) -> list[str]:
        """Model, adapter, parameters, loss and held-out loss, where a new one begins."""
        one = self.entry
        if self.reader in ("paper", "published", "difference"):
            return [""] * len(HEADS)
        single = self.reader == "strict"
        which = (one.adapter or "none") + (
            f", seed {one.seed}" if single and self.seeds > 1 else ""
        )
        loss = f"{one.losses[0]:.3f} to {one.losses[1]:.3f}" if one.losses and single else ""
        return [
            Path(one.model).name + f", {one.quantize}" * bool(one.quantize),
            which,
            f"{one.parameters:,}",
            loss,
            loss_text(one.held_out) if single else "",
        ]

    def text(self, name: str) -> str:
        cell = self.cells.get(name)
        if cell is None:
            return ""
        if isinstance(cell, tuple):
            return (
                f"{cell[0]:.1f}"
                if self.reader == "paper"
                else f"{cell[0]:.1f} ({cell[1]:.1f} to {cell[2]:.1f})"
            )
        return f"{cell:+.1f}" if self.reader == "difference" else f"{cell:.1f}"


def lines_of(entries: list[Entry], table: Table | None) -> list[Line]:
    """Of each entry ours strict and ours as the paper reads, then the published one and the difference where there is one and ours is whole.

    Above the first of several seeds their mean, with the lowest and highest.
    """
    found = []
    for one in entries:
        same = [
            other for other in entries if (other.model, other.adapter) == (one.model, one.adapter)
        ]
        if len(same) > 1 and same[0] is one and one.strict:
            found.append(Line(one, f"mean of {len(same)} seeds", spread(same), len(same)))
        cells = {}
        for reader, scores in readings(one).items():
            cells[reader] = {
                name: (100 * score.accuracy, *(100 * end for end in score.interval))
                for name, score in scores.items()
            }
            cells[reader] |= (
                {"average": tuple(100 * value for value in mean_score(scores))} if scores else {}
            )
            found.append(Line(one, reader, cells[reader], len(same)))
        row = table.row(one.model, one.adapter) if table else None
        if row:
            found.append(Line(one, "published", row, len(same)))
            if comparable(one, table):
                found.append(
                    Line(
                        one,
                        "difference",
                        {name: cells["paper"][name][0] - value for name, value in row.items()},
                        len(same),
                    )
                )
    return found


def readings(one: Entry) -> dict[str, dict[str, Score]]:
    """Reader -> its scores; the strict one alone, with none, where there is no test set."""
    return {"strict": one.strict} | ({"paper": one.paper} if one.paper else {})


def comparable(one: Entry, table: Table) -> bool:
    """Whether all problems of the published table, and no other sets, were measured."""
    return set(table.sets) == one.paper.keys() and not table.missing(one.paper)


def spread(same: list[Entry]) -> dict[str, tuple[float, float, float]]:
    """Set and "average" -> (mean, lowest, highest) of several seeds, of what all of them measured."""
    figures = [percents(one.strict, list(one.strict)) if one.strict else {} for one in same]
    by_set = {
        name: [one[name] for one in figures]
        for name in figures[0]
        if all(name in one for one in figures)
    }
    return {
        name: (sum(values) / len(values), min(values), max(values))
        for name, values in by_set.items()
    }


def sets_of(entries: list[Entry], table: Table | None) -> list[str]:
    names = list(dict.fromkeys(name for one in entries for name in one.strict))
    first = [name for name in table.sets if name in names] if table else []
    return [*first, *(name for name in names if name not in first), *(["average"] if names else [])]


HEADS = ("model", "adapter", "parameters", "loss", "held-out loss")


def heads_of(entries: list[Entry]) -> tuple[str, ...]:
    """The columns in front of the reader's; that of the held-out loss only where one has it."""
    return HEADS if any(one.held_out for one in entries) else HEADS[:-1]


def markdown(entries: list[Entry], table: Table | None) -> str:
    """The lines as Markdown."""
    sets = sets_of(entries, table)
    heads = heads_of(entries)
    rows = [
        [*heads, "", *(NAMES.get(name, name) for name in sets)],
        ["---"] * (len(heads) + 1 + len(sets)),
    ]
    rows += [
        [*line.head[: len(heads)], line.reader, *(line.text(name) for name in sets)]
        for line in lines_of(entries, table)
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def page(entries: list[Entry], table: Table | None) -> str:
    """The same as a page; a difference is marked where the published figure lies outside the interval of ours."""
    sets, titles = sets_of(entries, table), heads_of(entries)
    rows = []
    for line in lines_of(entries, table):
        cells = [html.escape(cell) for cell in (*line.head[: len(titles)], line.reader)]
        cells += [
            f'<b class="wrong">{line.text(name)}</b>' if outside(line, name) else line.text(name)
            for name in sets
        ]
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    about = (
        f"<p>Published: {html.escape(table.title)}, {html.escape(table.about)}.</p>"
        if table
        else ""
    )
    heads = "".join(
        f"<th>{html.escape(NAMES.get(name, name))}</th>" for name in (*titles, "", *sets)
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>table</title><style>{STYLE} body {{ max-width: 1500px }}</style>
<h1>Accuracy in percent</h1>{about}
<p>strict: read as what a text says its answer is, in brackets the 95 % interval; paper: as the paper's code read it; difference: paper minus published,
bold where the published figure lies outside the 95 % interval of ours, and given only where all of its problems were measured; mean of several seeds:
in brackets the lowest and the highest. Loss: mean of the first and of the last ten steps. Held-out loss: nats per token on rows kept out of training,
where there is no test set.</p>
<table><tr>{heads}</tr>{"".join(rows)}</table></html>"""


def outside(line: Line, name: str) -> bool:
    """Whether this is a difference whose published figure lies outside the interval of ours."""
    if line.reader != "difference" or name not in line.cells:
        return False
    score = line.entry.paper.get(name)
    ours, low, high = (score.accuracy, *score.interval) if score else mean_score(line.entry.paper)
    return not 100 * low <= 100 * ours - line.cells[name] <= 100 * high


def write_table(folder: Path, entries: list[Entry], table: Table | None) -> None:
    """folder/table.md, table.csv (a line a set and reader) and table.html."""
    write_text(folder / "table.md", markdown(entries, table))
    write_text(folder / "table.html", page(entries, table))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in entries:
        row = (table.row(one.model, one.adapter) if table else None) or {}
        held_out = (one.held_out.get("before", one.held_out.get("loss")), one.held_out.get("after"))
        for reader, scores in readings(one).items():
            figures = {
                name: (score.accuracy, *score.interval, score.total)
                for name, score in scores.items()
            }
            if scores:
                figures["average"] = (
                    *mean_score(scores),
                    sum(score.total for score in scores.values()),
                )
            else:
                figures[""] = (None, None, None, None)
            for name, (value, low, high, total) in figures.items():
                shares = (
                    None if part is None else round(100 * part, 2) for part in (value, low, high)
                )
                difference = (
                    round(100 * value - row[name], 2)
                    if name in row and comparable(one, table)
                    else None
                )
                writer.writerow(
                    (
                        one.model,
                        one.quantize,
                        one.adapter or "none",
                        one.seed,
                        one.parameters,
                        *(one.losses or (None, None)),
                        one.seconds,
                        name,
                        reader,
                        *shares,
                        total,
                        row.get(name),
                        difference,
                        *held_out,
                    )
                )
    write_text(folder / "table.csv", buffer.getvalue())
