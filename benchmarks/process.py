"""The measuring library: work in fresh processes, in turn, with seconds and peak memory.

A piece of work is a function `setup(options) -> run`, named "module:function" so that a fresh
process finds it; `run()` does the work once and returns facts (loss, tokens ...). The processes of
a comparison wait for one another, so that they share neither cores nor memory bandwidth. Needs no
torch, so that it adds nothing to what it measures.
"""

import importlib
import json
import os
import resource
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile

from benchmarks.machine import give_back_memory, held, peak_of, reserved, reset_peak, synchronize
from files.errors import UserError

ROOT = Path(__file__).parent.parent
SERVE = "import sys; from benchmarks.process import serve; serve(*sys.argv[1:])"


@dataclass
class Measured:
    """The runs of one side of a comparison."""

    runs: list[dict] = field(default_factory=list)  # {seconds, peak, reserved, and its facts}
    loaded: int = 0  # bytes in use after the setup

    @property
    def seconds(self) -> float:
        return min(run["seconds"] for run in self.runs)

    @property
    def median(self) -> float:
        return statistics.median(run["seconds"] for run in self.runs)

    @property
    def peak(self) -> int:
        return max(run["peak"] for run in self.runs)

    @property
    def facts(self) -> dict:
        """Of the last run."""
        return self.runs[-1]


class Local:
    """Work in this process: for a smoke run, whose memory and time mean nothing."""

    def __init__(self, work: str, options: dict, timeout: float | None = None):
        module, _, function = work.partition(":")
        self.device = options.get("device", "cpu")
        self.run = getattr(importlib.import_module(module), function)(options)
        self.loaded = held(self.device)

    def ask(self) -> dict:
        """Do the work once -> {seconds, peak, reserved} and its facts."""
        synchronize(self.device)
        if self.device.startswith("cuda"):  # on the CPU the peak is that of the whole process
            reset_peak(self.device)
        began = time.perf_counter()
        facts = self.run() or {}
        synchronize(self.device)
        seconds = time.perf_counter() - began
        used = {"peak": peak_of(self.device), "reserved": reserved(self.device)}
        return {"seconds": seconds} | used | facts

    def close(self) -> None:
        del self.run


class Worker:
    """Work in a fresh process, which waits until it is asked."""

    def __init__(self, work: str, options: dict, timeout: float | None = None):
        """timeout: seconds that setup and all of `ask` may take. Raises UserError."""
        self.timeout, self.began = timeout, time.monotonic()
        self.errors = TemporaryFile("w+")  # noqa: SIM115 - closed in `close`
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVE, work, json.dumps(options)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.loaded = self.read()["loaded"]

    def ask(self) -> dict:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> dict:
        """The next line. Raises UserError when the process ends or takes too long."""
        left = None
        if self.timeout is not None:
            left = max(0.0, self.timeout - (time.monotonic() - self.began))
        if not select.select([self.process.stdout], [], [], left)[0]:
            self.close()
            raise UserError(f"stopped after {self.timeout:.0f} s")
        if line := self.process.stdout.readline():
            return json.loads(line)
        self.process.wait()
        reason = last_line(self.errors, self.process.returncode)
        self.close()
        raise UserError(f"the measurement ended with: {reason}")

    def close(self) -> None:
        if self.errors.closed:
            return
        self.kill()
        self.process.communicate()
        self.errors.close()

    def kill(self) -> None:
        """End it and what it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def serve(work: str, options: str) -> None:
    """In the process of a `Worker`: set up, then work once for each line read."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed does not disturb the answers
    local = Local(work, json.loads(options))
    give_back_memory()
    reset_peak(local.device)
    print(json.dumps({"loaded": held(local.device)}), file=out, flush=True)
    for _ in sys.stdin:
        print(json.dumps(local.ask()), file=out, flush=True)


def in_turn(
    sides: dict[str, tuple[str, dict]],
    repeats: int,
    *,
    warm: int = 1,
    fresh: bool = True,
    timeout: float | None = None,
) -> dict[str, Measured]:
    """Each side (work, options) in a process of its own, asked in turn: A B A B ...

    The first `warm` rounds do not count. fresh=False: all in this process. Raises UserError.
    """
    measured = {name: Measured() for name in sides}
    with ExitStack() as stack:
        workers = {}
        for name, (work, options) in sides.items():
            workers[name] = (Worker if fresh else Local)(work, options, timeout)
            stack.callback(workers[name].close)
            measured[name].loaded = workers[name].loaded
        for turn in range(warm + repeats):
            for name, worker in workers.items():
                run = worker.ask()
                if turn >= warm:
                    measured[name].runs.append(run)
    return measured


def run_command(command: Sequence[str]) -> dict:
    """Run a program -> {seconds, peak}; peak 0: less than this process has. Raises UserError."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with TemporaryFile("w+") as errors:
        began = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=errors, env=environment
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise UserError(f"the measurement ended with: {last_line(errors, process.returncode)}")
    # the kernel counts the parent's memory at the fork as the child's
    peak, own = 1024 * used.ru_maxrss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": seconds, "peak": peak if peak > own else 0}


def run_python(
    code: str, *arguments: str, processes: int = 1, **environment: str
) -> Iterator[dict]:
    """Run code in a fresh Python process with this project on its path; yields its JSON lines.

    processes: so many by torchrun. Raises UserError when one fails.
    """
    command = [sys.executable, "-c", code, *arguments]
    if processes > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
        command = [*torchrun, "--nproc-per-node", str(processes), *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    with (
        TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
        if process.wait():
            raise UserError(f"the measurement ended with: {last_line(errors, process.returncode)}")


def last_line(errors, status: int) -> str:
    """The last line that a process wrote to its stderr."""
    errors.seek(0)
    lines = errors.read().strip().splitlines() or [f"status {status}"]
    return f"{lines[-1].removeprefix('files.errors.UserError: '):.300}"
