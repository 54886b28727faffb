"""The runs of a grid as processes of their own, several at a time; complete ones are skipped."""

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TextIO

from experiments.axes import Values
from experiments.results import read_result
from files.errors import UserError
from files.writing import lock, make_folder, refuse_links, write_text
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
    """Write the settings of each job, which its command reads.

    Raises UserError for a link beside them: a log would be written through it.
    """
    for folder in dict.fromkeys(job.folder.parent for job in jobs):
        make_folder(folder)
        refuse_links(folder)
    for job in jobs:
        write_text(job.config, to_toml(job.settings))


Started = tuple[Callable[[], int], Callable[[], None]]  # waits for its status; stops it


def start_process(command: list[str], log: TextIO) -> Started:
    """Start a command, its output at the end of `log`."""
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    return process.wait, process.terminate


@dataclass(frozen=True)
class Launcher:
    """How the runs of a grid are started (experiments/launch.py)."""

    start: Callable[[Job, TextIO], Started] = lambda job, log: start_process(job.command(), log)
    at_once: int | None = 1  # runs at the same time; None: all
    tries: int = 1  # of a job that does not end complete; each goes on where the last one ended


HERE = Launcher()


def run_all(
    jobs: Sequence[Job], folder: Path, launcher: Launcher, say: Callable[[str], None]
) -> list[Job]:
    """Write the settings of the jobs, say how many there are, and `run_jobs`."""
    write_jobs(jobs)
    say(f"{len(jobs)} runs in {folder}, {sum(job.done for job in jobs)} of them complete")
    return run_jobs(jobs, launcher, say)


def refuse_failed(failed: Sequence[Job], jobs: Sequence[Job]) -> None:
    """Raise UserError if some of the jobs have failed."""
    if failed:
        names = ", ".join(job.folder.name for job in failed)
        raise UserError(
            f"{len(failed)} of {len(jobs)} runs failed: {names}; the same command tries them again"
        )


def run_jobs(
    jobs: Sequence[Job], launcher: Launcher = HERE, say: Callable[[str], None] = print
) -> list[Job]:
    """Run the jobs that are not complete; returns those that failed.

    A job's settings must be written (`write_jobs`). Its output goes to FOLDER.log, and one line on
    each is passed to `say` as soon as it has ended. What interrupts this (SystemExit of a SIGTERM,
    KeyboardInterrupt) stops the runs after their step, and a second time at once.
    """
    waiting = [job for job in jobs if not job.done]
    ended = itertools.count(len(jobs) - len(waiting) + 1)

    def told(name: str, outcome: str) -> None:
        say(f"[{next(ended)} of {len(jobs)}] {name}: {outcome}")

    runs, pool = Runs(), ThreadPoolExecutor(launcher.at_once or max(1, len(waiting)))
    try:
        complete = list(pool.map(lambda job: run_job(job, launcher, runs, told), waiting))
        return [job for job, done in zip(waiting, complete, strict=True) if not done]
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
    """The runs under way, which are out of the terminal's reach: `stop` stops them."""

    def __init__(self):
        self.stops: set[Callable[[], None]] = set()
        self.stopped, self.lock = False, threading.Lock()

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            for stop in self.stops:
                stop()

    def finish(self, start: Callable[[], Started]) -> int | None:
        """The status of what is started; None where the runs were stopped before it began."""
        with self.lock:
            if self.stopped:
                return None
            wait, stop = start()
            self.stops.add(stop)
        status = wait()
        with self.lock:
            self.stops.discard(stop)
        return status


def run_job(job: Job, launcher: Launcher, runs: Runs, told: Callable[[str, str], None]) -> bool:
    """Run one job; whether it is complete afterwards.

    The process holds a lock on its log, also where the one that started it was killed: the same
    command waits for it.
    """
    began, status = time.time(), 0
    log = job.folder.with_name(f"{job.folder.name}.log")
    with open(log, "a", encoding="utf-8") as file:
        while not runs.stopped and not lock(file.fileno()):
            time.sleep(0.2)
        earlier = file.seek(0, os.SEEK_END)
        for _ in range(launcher.tries):
            if not job.done and not runs.stopped:
                status = runs.finish(lambda: launcher.start(job, file))
    if status is None or runs.stopped:
        return False
    # A complete run may end with status 1, of which its result says why, or be killed as it exits.
    if complete := job.done:
        outcome = f"{time.time() - began:.0f} seconds{accuracy_text(job)}"
    else:
        lines = log.read_bytes()[earlier:].decode("utf-8", errors="replace").splitlines()
        silent = "it printed nothing, and wrote no result.json"
        last = next((line for line in reversed(lines) if line.strip()), silent)
        outcome = f"failed with status {status}, see {log}: {last[:300]}"
    told(job.folder.name, outcome)
    return complete


def accuracy_text(job: Job) -> str:
    """ ", 97.5% on 4 test sets"; "" where nothing was measured."""
    try:
        scores = read_result(job.folder, is_run=bool(job.adapter)).strict
    except UserError as error:  # the table says so again; other runs go on
        return f", {error}"
    if not scores:
        return ""
    mean = fmean(score.accuracy for score in scores.values())
    return f", {100 * mean:.1f}% on {len(scores)} test set{'s' * (len(scores) > 1)}"
