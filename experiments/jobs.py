"""The runs of a grid as processes of their own, several at a time; complete ones are skipped."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from experiments.axes import Values
from files.reading import read_json
from files.writing import lock, make_folder, write_text
from train.settings import Settings, to_toml

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Job:
    """One run of a grid, in a folder of its own; its settings are written beside the folder.

    adapter: the preset; empty: only the model is measured. values: of the grid's axes.
    """

    settings: Settings
    adapter: str
    folder: Path
    values: Values = field(default_factory=dict)

    @property
    def model(self) -> str:
        return self.settings.model

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def config(self) -> Path:
        """The file of its complete settings."""
        return self.folder.with_name(f"{self.folder.name}.toml")

    @property
    def done(self) -> bool:
        return (self.folder / "result.json").is_file()

    def command(self) -> list[str]:
        """What starts the job, goes on with it, or does nothing where it is complete."""
        start = [sys.executable, str(ROOT / "run.py"), *([] if self.adapter else ["evaluate"])]
        paths = [str(path.absolute()) for path in (self.config, self.folder)]
        return [*start, "--config", paths[0], "--out", paths[1], "--or-resume"]


def write_jobs(jobs: Sequence[Job]) -> None:
    """Write the settings of each job, which its command reads."""
    for job in jobs:
        make_folder(job.folder.parent)
        write_text(job.config, to_toml(job.settings))


def run_here(job: Job, log: Path) -> int:
    """Run a job's command, its output at the end of `log`; returns its status."""
    with open(log, "a", encoding="utf-8") as file:
        return subprocess.run(
            job.command(), stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        ).returncode


@dataclass(frozen=True)
class Launcher:
    """How the runs of a grid are started (experiments/launch.py)."""

    start: Callable[[Job, Path], int] = run_here  # runs a job, waits for it, returns its status
    at_once: int = 1
    tries: int = 1  # of a job that does not end complete; each goes on where the last one ended


HERE = Launcher()


def run_jobs(
    jobs: Sequence[Job], launcher: Launcher = HERE, say: Callable[[str], None] = print
) -> list[Job]:
    """Run the jobs that are not complete; returns those that failed.

    A job's settings must be written (`write_jobs`). Its output goes to FOLDER.log, and one line on
    each is passed to `say` as soon as it has ended.
    """
    waiting = [job for job in jobs if not job.done]
    count = itertools.count(len(jobs) - len(waiting) + 1)

    def told(line: str) -> None:
        say(f"[{next(count)} of {len(jobs)}] {line}")

    with ThreadPoolExecutor(launcher.at_once) as pool:
        results = pool.map(lambda job: run_job(job, launcher, told), waiting)
        return [job for job, complete in zip(waiting, results, strict=True) if not complete]


def run_job(job: Job, launcher: Launcher, say: Callable[[str], None]) -> bool:
    """Run one job; whether it is complete afterwards."""
    began = time.time()
    log = job.folder.with_name(f"{job.folder.name}.log")
    for _ in range(launcher.tries):
        status = launcher.start(job, log)
        if job.done:
            break
    # Status 1 of a complete run: its result says what went wrong.
    if complete := job.done and status in (0, 1):
        outcome = f"{time.time() - began:.0f} seconds{accuracy_text(job)}"
    else:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((line for line in reversed(lines) if line.strip()), "")
        outcome = f"failed with status {status}, see {log}: {last[:300]}"
    say(f"{job.folder.name}: {outcome}")
    return complete


def accuracy_text(job: Job) -> str:
    """ ", 97.5% on 4 test sets"; "" where nothing was measured."""
    facts = read_json(job.folder / "result.json")
    scores = facts.get("after" if job.adapter else "scores")
    if not scores:
        return ""
    mean = fmean(score["accuracy"] for score in scores.values())
    return f", {100 * mean:.1f}% on {len(scores)} test set{'s' * (len(scores) > 1)}"
