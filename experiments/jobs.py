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
    each is passed to `say`. What interrupts this (SystemExit of a SIGTERM, KeyboardInterrupt) stops
    the runs after their step, and a second time at once.
    """
    runs, pool = Runs(), ThreadPoolExecutor(at_once)
    try:
        complete = list(pool.map(lambda job: job.done or run_job(job, runs, say), jobs))
        return [job for job, done in zip(jobs, complete, strict=True) if not done]
    except BaseException:
        runs.stop()
        say("stopping the runs after their step; the same command goes on from there")
        raise
    finally:
        try:
            pool.shutdown(cancel_futures=True)
        except BaseException:
            runs.stop()
            raise


class Runs:
    """The processes of the jobs, which are out of the terminal's reach: `stop` stops them."""

    def __init__(self):
        self.processes: set[subprocess.Popen] = set()
        self.stopped, self.lock = False, threading.Lock()

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            for process in self.processes:
                process.terminate()

    def finish(self, command: list[str], output: TextIO) -> int | None:
        """The status of a command; None where the runs were stopped before it began."""
        with self.lock:
            if self.stopped:
                return None
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
            self.processes.add(process)
        status = process.wait()
        with self.lock:
            self.processes.discard(process)
        return status


def run_job(job: Job, runs: Runs, say: Callable[[str], None]) -> bool:
    """Run one job; whether it is complete afterwards.

    The process holds a lock on its log, also where the one that started it was killed: the same
    command waits for it.
    """
    began = time.time()
    log = job.folder.with_name(f"{job.folder.name}.log")
    with open(log, "a", encoding="utf-8") as file:
        if not lock(file.fileno()):
            say(f"{job.folder} is being run by another process: waiting for it")
            while not runs.stopped and not lock(file.fileno()):
                time.sleep(0.2)
        status = 0 if job.done else runs.finish(job.command(), file)
    if status is None or runs.stopped:
        return False
    # Status 1 of a complete run: its result says what went wrong.
    if complete := job.done and status in (0, 1):
        outcome = f"{time.time() - began:.0f} seconds"
    else:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        last = next((line for line in reversed(lines) if line.strip()), "")
        outcome = f"failed with status {status}, see {log}: {last[:300]}"
    say(f"{job.folder.name}: {outcome}")
    return complete
