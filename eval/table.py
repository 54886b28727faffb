"""A grid of runs, models x adapters, one resumable job after another, and the table of what came of them."""

import csv
import io
import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from eval.report import read_log
from model.errors import UserError
from model.files import make_folder, write_text

ROOT = Path(__file__).parent.parent
COLUMNS = ("model", "adapter", "parameters", "loss, first 10 steps", "loss, last 10 steps", "base", "accuracy", "low", "high", "others, lowest", "seconds")


@dataclass(frozen=True)
class Job:
    """One run of the grid, in a folder of its own."""

    model: str
    adapter: str
    folder: Path
    options: tuple[str, ...] = ()

    @property
    def done(self) -> bool:
        return (self.folder / "result.json").is_file()

    def command(self) -> list[str]:
        start = [sys.executable, str(ROOT / "run.py")]
        if (self.folder / "run.toml").is_file():
            return [*start, "--resume", str(self.folder)]
        return [*start, "--model", self.model, "--adapter", self.adapter, "--out", str(self.folder), *self.options]


def run_jobs(jobs: list[Job], at_once: int, say=print) -> list[Job]:
    """Run what is not done yet, `at_once` at a time, each with its own log beside its folder; returns the jobs that failed."""

    def run(job: Job) -> Job | None:
        if job.done:
            return None
        began = time.time()
        log = job.folder.with_name(f"{job.folder.name}.log")
        with open(log, "a", encoding="utf-8") as file:
            code = subprocess.run(job.command(), stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
        say(f"{job.model} {job.adapter}: {f'{time.time() - began:.0f} seconds' if code == 0 else f'failed with status {code}, see {log}'}")
        return None if code == 0 and job.done else job

    for job in jobs:
        make_folder(job.folder.parent)
    with ThreadPoolExecutor(at_once) as pool:
        return [job for job in pool.map(run, jobs) if job is not None]


def row(job: Job) -> dict:
    """What came of a run: the first test set is the one to watch; `others, lowest` leaves out the sets the base cannot do. Raises UserError."""
    try:
        facts = json.loads((job.folder / "result.json").read_text(encoding="utf-8"))
        losses = [entry["loss"] for entry in read_log(job.folder / "log.jsonl") if entry["loss"] is not None]
        first, *others = facts["after"]
        known = [name for name in others if facts["before"].get(name, {}).get("accuracy", 1.0) > 0.5]
        score = facts["after"][first]
        values = (
            job.model, job.adapter, facts["trainable_parameters"], sum(losses[:10]) / len(losses[:10]), sum(losses[-10:]) / len(losses[-10:]),
            facts["before"].get(first, {}).get("accuracy"), score["accuracy"], *score["interval_95"],
            min((facts["after"][name]["accuracy"] for name in known), default=None), facts["seconds"],
        )
    except (OSError, ValueError, KeyError, ZeroDivisionError) as error:
        raise UserError(f"{job.folder} is not a complete run ({type(error).__name__}: {error}): remove it and start the table again") from None
    return dict(zip(COLUMNS, values, strict=True))


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def markdown(rows: list[dict]) -> str:
    """A table for each model, its adapters below one another."""
    lines = []
    for model in dict.fromkeys(one["model"] for one in rows):
        head = "| adapter | parameters | loss, first and last 10 steps | held-out manner, % (95 %) | base | lowest other manner | seconds |"
        lines += ["", f"**{model}**", "", head, "|---|---|---|---|---|---|---|"]
        for one in rows:
            if one["model"] == model:
                lines.append(f"| `{one['adapter']}` | {one['parameters']:,} | {one['loss, first 10 steps']:.3f} → {one['loss, last 10 steps']:.3f} | "
                             f"{percent(one['accuracy'])} ({percent(one['low'])} to {percent(one['high'])}) | {percent(one['base'])} | "
                             f"{percent(one['others, lowest'])} | {one['seconds']} |")
    return "\n".join(lines[1:]) + "\n"


def write_table(folder: Path, rows: list[dict]) -> None:
    """folder/table.md and folder/table.csv."""
    write_text(folder / "table.md", markdown(rows))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "table.csv", buffer.getvalue())
