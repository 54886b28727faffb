"""The runs of a grid as processes of their own, several at a time; complete ones are skipped."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from experiments.axes import Values
from files.writing import make_folder, write_text
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
        """What runs the job, or goes on with it where it was interrupted."""
        start = [sys.executable, str(ROOT / "run.py"), *([] if self.adapter else ["evaluate"])]
        if (self.folder / ("run.toml" if self.adapter else "evaluation.json")).is_file():
            return [*start, "--resume", str(self.folder)]
        return [*start, "--config", str(self.config), "--out", str(self.folder)]


def write_jobs(jobs: Sequence[Job]) -> None:
    """Write the settings of each job, which its command reads."""
    for job in jobs:
        make_folder(job.folder.parent)
        write_text(job.config, to_toml(job.settings))


def run_jobs(jobs: Sequence[Job], at_once: int, say: Callable[[str], None] = print) -> list[Job]:
    """Run the jobs that are not complete, `at_once` at a time; returns those that failed.

    A job's settings must be written (`write_jobs`). Its output goes to FOLDER.log, and one line on
    each is passed to `say`.
    """
    with ThreadPoolExecutor(at_once) as pool:
        results = pool.map(lambda job: job.done or run_job(job, say), jobs)
        return [job for job, complete in zip(jobs, results, strict=True) if not complete]


def run_job(job: Job, say: Callable[[str], None]) -> bool:
    """Run one job; whether it is complete afterwards."""
    began = time.time()
    log = job.folder.with_name(f"{job.folder.name}.log")
    with open(log, "a", encoding="utf-8") as file:
        status = subprocess.run(
            job.command(), stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        ).returncode
    # Status 1 of a complete run: its result says what went wrong.
    if complete := job.done and status in (0, 1):
        outcome = f"{time.time() - began:.0f} seconds"
    else:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((line for line in reversed(lines) if line.strip()), "")
        outcome = f"failed with status {status}, see {log}: {last[:300]}"
    say(f"{job.folder.name}: {outcome}")
    return complete
