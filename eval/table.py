"""A grid of runs, one resumable job after another, and the table of what came of them, beside the published figures."""

import csv
import html
import io
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from eval.published import Table
from eval.report import STYLE, read_log
from eval.score import Score, mean_score
from eval.text import NAMES
from model.errors import UserError
from model.files import make_folder, write_text

ROOT = Path(__file__).parent.parent
COLUMNS = ("model", "adapter", "seed", "parameters", "loss, first 10 steps", "loss, last 10 steps", "seconds", "set", "reader", "accuracy", "low", "high",
           "total", "published", "difference")


@dataclass(frozen=True)
class Job:
    """One run of the grid, in a folder of its own; without an adapter the model alone is measured."""

    model: str
    adapter: str
    seed: int
    folder: Path
    options: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        return (self.folder / "result.json").is_file()

    def command(self) -> list[str]:
        start = [sys.executable, str(ROOT / "run.py"), *([] if self.adapter else ["evaluate"])]
        if (self.folder / ("run.toml" if self.adapter else "evaluation.json")).is_file():
            return [*start, "--resume", str(self.folder)]
        which = ["--adapter", self.adapter, "--seed", str(self.seed)] if self.adapter else []
        return [*start, "--model", self.model, *which, "--out", str(self.folder), *self.options]


def run_jobs(jobs: list[Job], at_once: int, say=print) -> list[Job]:
    """Run what is not done yet, `at_once` at a time, each with its own log beside its folder; returns the jobs that failed."""

    def run(job: Job) -> Job | None:
        if job.done:
            return None
        began = time.time()
        log = job.folder.with_name(f"{job.folder.name}.log")
        with open(log, "a", encoding="utf-8") as file:
            code = subprocess.run(job.command(), stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
        last = next((line for line in reversed(log.read_text(encoding="utf-8", errors="replace").splitlines()) if line.strip()), "")
        said = f"{time.time() - began:.0f} seconds" if code == 0 else f"failed with status {code}, see {log}: {last[:300]}"
        say(f"{job.model} {job.adapter or 'base'}: {said}")
        return None if code == 0 and job.done else job

    for job in jobs:
        make_folder(job.folder.parent)
    with ThreadPoolExecutor(at_once) as pool:
        return [job for job in pool.map(run, jobs) if job is not None]


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
    losses: tuple[float, float] | None = None


def entry(job: Job) -> Entry:
    """The Entry of a job that is done. Raises UserError."""
    try:
        facts = json.loads((job.folder / "result.json").read_text(encoding="utf-8"))
        tables = facts["after" if job.adapter else "scores"]
        strict = {name: Score(table["right"], table["total"], table.get("problems", 0)) for name, table in tables.items()}
        paper = {name: Score(table["paper_reader"]["right"], table["total"], table.get("problems", 0)) for name, table in tables.items()}
        if not job.adapter:
            return Entry(job.model, "", job.seed, strict, paper)
        losses = [line["loss"] for line in read_log(job.folder / "log.jsonl") if line["loss"] is not None]
        mean = (sum(losses[:10]) / len(losses[:10]), sum(losses[-10:]) / len(losses[-10:]))
        return Entry(job.model, job.adapter, job.seed, strict, paper, facts["seconds"], facts["trainable_parameters"], mean)
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{job.folder} is not a complete run ({type(error).__name__}: {error}): remove it and start the table again") from None


def losses_fell(one: Entry) -> bool:
    return one.losses is None or one.losses[1] < one.losses[0]


def lines_of(entries: list[Entry], table: Table | None) -> list[dict]:
    """The lines of the table: of each entry ours strict and ours as the paper reads, then the published one and the difference where there is one.

    Each is {model, adapter, seed, reader, cells: set or "average" -> (percent, low, high) or a number}.
    """
    found = []
    for one in entries:
        found += mean_lines(entries, one)
        head = {"model": one.model, "adapter": one.adapter or "none", "seed": one.seed}
        readers = {"strict": one.strict, "paper": one.paper}
        cells = {}
        for reader, scores in readers.items():
            mean = mean_score(scores)
            cells[reader] = {name: (100 * score.accuracy, *(100 * end for end in score.interval)) for name, score in scores.items()}
            cells[reader]["average"] = tuple(100 * value for value in mean)
            found.append({**head, "reader": reader, "cells": cells[reader], "entry": one})
        row = table.row(one.model, one.adapter) if table else None
        if row and set(table.sets) <= one.paper.keys():
            found.append({**head, "reader": "published", "cells": row, "entry": one})
            found.append({**head, "reader": "difference", "cells": {name: cells["paper"][name][0] - value for name, value in row.items()}, "entry": one})
    return found


def mean_lines(entries: list[Entry], first: Entry) -> list[dict]:
    """Above the first of several seeds: the mean of them all, and the lowest and highest; nothing elsewhere."""
    same = [one for one in entries if (one.model, one.adapter) == (first.model, first.adapter)]
    if len(same) < 2 or same[0] is not first:
        return []
    figures = [{name: 100 * score.accuracy for name, score in one.strict.items()} | {"average": 100 * mean_score(one.strict)[0]} for one in same]
    by_set = {name: [one[name] for one in figures] for name in figures[0]}
    cells = {name: (sum(values) / len(values), min(values), max(values)) for name, values in by_set.items()}
    return [{"model": first.model, "adapter": first.adapter, "seed": first.seed, "reader": f"mean of {len(same)} seeds", "cells": cells, "entry": first}]


def sets_of(entries: list[Entry], table: Table | None) -> list[str]:
    names = list(dict.fromkeys(name for one in entries for name in one.strict))
    first = [name for name in table.sets if name in names] if table else []
    return [*first, *(name for name in names if name not in first), "average"]


def cell_text(cell, reader: str) -> str:
    if cell is None:
        return ""
    if isinstance(cell, tuple):
        return f"{cell[0]:.1f} ({cell[1]:.1f} to {cell[2]:.1f})" if reader != "paper" else f"{cell[0]:.1f}"
    return f"{cell:+.1f}" if reader == "difference" else f"{cell:.1f}"


def markdown(entries: list[Entry], table: Table | None) -> str:
    """Percent right, with the 95 % interval of what is read strictly, or the lowest and highest of several seeds.

    Differences are those of the paper's reader from the published figure.
    """
    sets = sets_of(entries, table)
    lines = ["| model | adapter | parameters | loss | reader | " + " | ".join(NAMES.get(name, name) for name in sets) + " |", "|---" * (5 + len(sets)) + "|"]
    for line in lines_of(entries, table):
        one, first = line["entry"], line["reader"] not in ("paper", "published", "difference")
        seed = f" (seed {one.seed})" if one.seed and line["reader"] == "strict" else ""
        loss = f"{one.losses[0]:.3f} to {one.losses[1]:.3f}" if one.losses and first else ""
        head = [Path(line["model"]).name, line["adapter"] + seed, f"{one.parameters:,}" if one.parameters else "0", loss] if first else ["", "", "", ""]
        cells = [cell_text(line["cells"].get(name), line["reader"]) for name in sets]
        lines.append("| " + " | ".join([*head, line["reader"], *cells]) + " |")
    return "\n".join(lines) + "\n"


def page(entries: list[Entry], table: Table | None) -> str:
    """The same as a page; a difference is marked where the published figure lies outside the interval of ours."""
    sets = sets_of(entries, table)
    rows = []
    for line in lines_of(entries, table):
        one, first = line["entry"], line["reader"] not in ("paper", "published", "difference")
        cells = []
        for name in sets:
            cell, mark = line["cells"].get(name), ""
            if line["reader"] == "difference" and cell is not None:
                score = one.paper.get(name)
                low, high = score.interval if score else mean_score(one.paper)[1:]
                published = 100 * (score.accuracy if score else mean_score(one.paper)[0]) - cell
                mark = ' class="wrong"' if not 100 * low <= published <= 100 * high else ""
            cells.append(f"<td{mark}>{cell_text(cell, line['reader'])}</td>")
        head = f"<b>{html.escape(Path(line['model']).name)}</b>" if first else ""
        which = html.escape(line["adapter"] + (f" (seed {one.seed})" if one.seed else "")) if first else ""
        rows.append(f"<tr><td>{head}</td><td>{which}</td><td>{line['reader']}</td>{''.join(cells)}</tr>")
    about = f"<p>Published: {html.escape(table.title)}, {html.escape(table.about)}.</p>" if table else ""
    heads = "".join(f"<th>{html.escape(NAMES.get(name, name))}</th>" for name in sets)
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>table</title>
<style>{STYLE} body {{ max-width: 1400px }} .wrong {{ font-weight: 600 }}</style>
<h1>Accuracy in percent</h1>{about}
<p>strict: read as what a text says its answer is, with the 95 % interval; paper: as the paper's code read it; difference: paper minus published, marked where
the published figure lies outside the 95 % interval of ours.</p>
<table><tr><th>model</th><th>adapter</th><th></th>{heads}</tr>{"".join(rows)}</table></html>"""


def write_table(folder: Path, entries: list[Entry], table: Table | None) -> None:
    """folder/table.md, table.csv (a line a set and reader) and table.html."""
    write_text(folder / "table.md", markdown(entries, table))
    write_text(folder / "table.html", page(entries, table))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in entries:
        row = table.row(one.model, one.adapter) if table else None
        for reader, scores in (("strict", one.strict), ("paper", one.paper)):
            for name, score in scores.items():
                published = row.get(name) if row else None
                difference = None if published is None else round(100 * score.accuracy - published, 2)
                writer.writerow((one.model, one.adapter or "none", one.seed, one.parameters, *(one.losses or (None, None)), one.seconds, name, reader,
                                 round(100 * score.accuracy, 2), *(round(100 * end, 2) for end in score.interval), score.total, published, difference))
    write_text(folder / "table.csv", buffer.getvalue())
