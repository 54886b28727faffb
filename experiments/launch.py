"""Launchers: the runs of a grid on other machines, through a command of a cluster or through Ray.

Every run is one shell line (`Job.command`) that starts it, goes on with it, or does nothing where
it is complete: any engine may be given it any number of times. The machines share the folder of the
results.
"""

import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from experiments.jobs import Job, Launcher, Started, start_process
from files.errors import UserError, unknown

ENGINES = ("ray",)
TRIES = 3  # of a run whose machine is lost, or that is killed


def job_lines(jobs: Sequence[Job]) -> list[str]:
    """The shell line of each job."""
    return [shlex.join(job.command()) for job in jobs]


@contextmanager
def launcher(
    at_once: int | None = None, launch: str = "", engine: str = "", address: str = ""
) -> Iterator[Launcher]:
    """What starts the runs of a grid.

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
    if engine:
        with ray_start(address) as start:
            yield Launcher(start, at_once, TRIES)
    elif launch:
        if "{}" not in launch:
            raise UserError(f"--launch {launch!r} needs {{}} where a run's line is to stand")

        def start_through(job: Job, log: TextIO) -> Started:
            line = launch.replace("{}", shlex.join(job.command()))
            return start_process(["sh", "-c", line], log)

        yield Launcher(start_through, at_once, TRIES)
    else:
        yield Launcher(at_once=at_once or 1)


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
            process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
            try:
                return process.wait()
            except KeyboardInterrupt:  # the task was cancelled: the run ends with its step
                process.terminate()
                process.wait()
                raise

    def start(job: Job, log: TextIO) -> Started:
        device, threads = job.settings.device, job.settings.threads
        gpus = device.count("cuda") or int(has_gpus and device == "auto")
        task = ray.remote(run_there).options(
            num_cpus=max(1, threads), num_gpus=gpus, max_retries=TRIES, name=job.folder.name
        )
        result = task.remote(job.command(), os.path.abspath(log.name))

        def wait() -> int:
            try:
                return ray.get(result)
            except ray.exceptions.RayError as error:
                log.write(f"Ray: {str(error).strip().splitlines()[0]}\n")
                log.flush()
                return 1

        return wait, lambda: ray.cancel(result)

    try:
        yield start
    finally:
        ray.shutdown()
