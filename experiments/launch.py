"""Launchers: the runs of a grid on other machines, through a command of a cluster or through Ray.

Every run is one shell line (`Job.command`) that starts it, goes on with it, or does nothing where it
is complete, so that it can be given to any engine any number of times. The machines share the
folder of the results.
"""

import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from experiments.jobs import Job, Launcher
from files.errors import UserError, unknown

ENGINES = ("ray",)
TRIES = 3  # of a run whose machine is lost, or that is killed


def job_lines(jobs: Sequence[Job]) -> list[str]:
    """The shell line of each job."""
    return [shlex.join(job.command()) for job in jobs]


@contextmanager
def launcher(
    count: int, at_once: int | None = None, launch: str = "", engine: str = "", address: str = ""
) -> Iterator[Launcher]:
    """What starts `count` runs.

    at_once: runs at the same time; None: one here, all through a command or an engine. launch: a
    shell command with {} for a run's line, such as "srun -n1 {}". engine: "ray". address: of a Ray
    cluster; "auto" finds the one this machine belongs to, "" starts one here. Raises UserError.
    """
    if at_once is not None and at_once < 1:
        raise UserError(f"--jobs {at_once} must be at least 1")
    if launch and engine:
        raise UserError("--launch and --engine are two ways to start runs: give one")
    if engine and engine not in ENGINES:
        raise unknown("engine", engine, ENGINES)
    if address and not engine:
        raise UserError("--address is that of a Ray cluster: give --engine ray with it")
    at_once = at_once or (max(1, count) if launch or engine else 1)
    if engine:
        with ray_start(address) as start:
            yield Launcher(start, at_once, TRIES)
    elif launch:
        if "{}" not in launch:
            raise UserError(f"--launch {launch!r} needs {{}} where a run's line is to stand")
        yield Launcher(through(launch), at_once, TRIES)
    else:
        yield Launcher(at_once=at_once)


def through(template: str):
    """A start that puts the job's line into a shell command and waits for it."""

    def start(job: Job, log: Path) -> int:
        line = template.replace("{}", shlex.join(job.command()))
        with open(log, "a", encoding="utf-8") as file:
            return subprocess.run(
                line, shell=True, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            ).returncode

    return start


@contextmanager
def ray_start(address: str):
    """A start that runs jobs as Ray tasks, which wait for the CPUs and GPUs they take.

    A task whose machine is lost is given to another one by Ray.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise UserError("--engine ray needs the package ray: pip install ray") from None
    try:
        ray.init(address=address or None, log_to_driver=False, logging_level="error")
    except (ConnectionError, RuntimeError, ValueError) as error:
        message = f"{error!s:.200}".strip().replace("\n", " ")
        raise UserError(f"no Ray cluster at {address or 'this machine'}: {message}") from None
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0

    def run_there(command: list[str], log: str) -> int:
        import subprocess  # this function is sent to other machines

        with open(log, "a", encoding="utf-8") as file:
            return subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            ).returncode

    def start(job: Job, log: Path) -> int:
        s = job.settings
        gpus = s.device.count("cuda") or int(has_gpus and s.device == "auto")
        task = ray.remote(run_there).options(
            num_cpus=max(1, s.threads), num_gpus=gpus, max_retries=TRIES, name=job.folder.name
        )
        try:
            return ray.get(task.remote(job.command(), str(log.absolute())))
        except ray.exceptions.RayError as error:
            with open(log, "a", encoding="utf-8") as file:
                file.write(f"Ray: {str(error).strip().splitlines()[0]}\n")
            return 1

    try:
        yield start
    finally:
        ray.shutdown()
