"""Python processes that start in a few hundredths of a second: forked from a server that has
imported torch and the project, which a fresh interpreter imports for two seconds.

Each has its own process id, signals, standard output and error, environment and working folder.
What needs the start of Python itself (its exit, the memory of a process, `--help` without torch)
takes subprocess as it is.
"""

import gc
import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import threading
from multiprocessing import connection, forkserver
from pathlib import Path
from subprocess import DEVNULL, STDOUT  # noqa: F401 - of experiments.jobs

ROOT = Path(__file__).parent.parent
PRELOADED = ["torch._dynamo", "torch.distributed.fsdp", "cli.train", "cli.evaluate"]
PRELOADED += ["experiments.run", "experiments.evaluate", "tokenizers", "in_processes"]
LOCK = threading.Lock()  # multiprocessing reads every exit status whenever it starts a process


class Started:
    """A process that was started; what subprocess.Popen has, for those who wait for its end."""

    def __init__(self, process, outputs: list[str]):
        self.process, self.outputs, self.pid = process, outputs, process.pid
        self.kill, self.terminate = process.kill, process.terminate

    @property
    def returncode(self) -> int | None:
        with LOCK:
            return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        connection.wait([self.process.sentinel], timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a process that was forked", timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(stdout, stderr), complete."""
        self.wait(timeout)
        return tuple(Path(path).read_text() for path in self.outputs)


def start(*words, cwd=None, environment: dict | None = None, limit: int | None = None) -> Started:
    """Start `python SCRIPT ARGUMENTS` or `python -c CODE ARGUMENTS`.

    environment: changed variables. limit: bytes that a file which it writes may have at most.
    """
    start_server()
    outputs = [tempfile.mkstemp()[1] for _ in range(2)]
    changed = {key: str(value) for key, value in (environment or {}).items()}
    words = [str(word) for word in words]
    given = (words, str(cwd or ROOT), dict(os.environ) | changed, outputs, limit)
    fork = multiprocessing.get_context("forkserver").Process
    process = fork(target=become, args=given, daemon=True)
    with LOCK:
        process.start()
    return Started(process, outputs)


def finish(*words, **how) -> subprocess.CompletedProcess:
    """What the process left that `start` would start."""
    started = start(*words, **how)
    try:
        out, error = started.communicate(timeout=900)
    finally:
        started.kill()
    return subprocess.CompletedProcess(words, started.returncode, out, error)


class Popen:
    """subprocess.Popen as experiments/jobs.py calls it: both outputs go to one file."""

    def __init__(self, command: list[str], stdout, **_):
        self.started, self.output = start(*command[1:], cwd=os.getcwd()), stdout
        self.terminate = self.started.terminate

    def wait(self) -> int:
        self.output.write("".join(self.started.communicate()))
        self.output.flush()
        return self.started.returncode


def become(words: list[str], cwd: str, environment: dict, outputs: list[str], limit) -> None:
    """Run the script in this new process."""
    gc.freeze()  # what the server has imported
    for number, path in zip((1, 2), outputs, strict=True):
        os.dup2(os.open(path, os.O_WRONLY), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")


def start_server() -> None:
    """Start the server where there is none yet."""
    with LOCK:  # threads start processes
        ensure_running()


def ensure_running() -> None:
    forkserver.set_forkserver_preload(PRELOADED)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT / 'tests'}"  # by which it finds what it imports
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before


def stop_server() -> None:
    """End the server, where there is one, and wait for it."""
    forkserver._forkserver._stop()
