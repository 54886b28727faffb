"""Options of runs that other programs start: lists of shell lines, clusters, --or-resume."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cli.options import given, parse_numbers, split_names
from files.errors import UserError

if TYPE_CHECKING:  # importing them imports torch
    from experiments.grid import Grid
    from experiments.jobs import Job, Launcher
    from train.parallel import Processes
    from train.settings import Settings

OR_RESUME = {
    "--or-resume": (
        bool,
        "start the run in --out, go on with it where it was interrupted, and do nothing where it "
        "is complete; waits while another process runs in it",
    )
}
LAUNCH = {
    "--jobs N": (int, "runs at the same time (1; with --launch and --engine all)"),
    "--list": (bool, "print a shell line for each run, which starts it or goes on with it"),
    "--launch COMMAND": "start each run through this shell command, {} stands for its line: "
    "'srun -n1 {}'",
    "--engine NAME": "ray: the runs as tasks of a Ray cluster (pip install ray)",
    "--address HOST": "of the Ray cluster: auto, or HOST:PORT (one is started here)",
}


def resume_or_start(
    options: argparse.Namespace,
    processes: "Processes",
    start_file: str,
    settings: Callable[[], "Settings"],
) -> argparse.Namespace | None:
    """The options that --or-resume comes to: those given, or of --resume; None: it is complete.

    start_file: what a run writes when it begins. Raises UserError without --out, and where the run
    in it has other settings.
    """
    from cli.main import parse
    from experiments.folders import state_of
    from experiments.grid_jobs import check_same

    if not options.out or options.resume:
        raise UserError("--or-resume goes with --out FOLDER, and without --resume")
    folder = Path(options.out)
    state = processes.from_writer(lambda: state_of(folder, start_file))
    command = "train" if start_file == "run.toml" else "evaluate"
    check_same(folder, settings(), adapter=command == "train")
    if state == "complete":
        print(f"{folder} is complete")
        return None
    return parse([command, "--resume", options.out])[1] if state == "interrupted" else options


def grid_of(options: argparse.Namespace) -> "Grid":
    """The grid of a file, with the options that are given in place of its values.

    Raises UserError.
    """
    from experiments.grid import grid_file, make_grid

    return make_grid(
        grid_file(options.grid) if options.grid else None,
        models=split_names(getattr(options, "models", None)),
        adapters=split_names(options.adapters),
        seeds=parse_numbers("--seeds", options.seeds, "0,1,2"),
        sets=options.set,
        **given(options, ("data", "data_dir", "recipe", "pocket")),
    )


def launch_grid(
    options: argparse.Namespace,
    jobs: "Callable[[], list[Job]]",
    start: "Callable[[Launcher], object]",
) -> int:
    """`start` the runs with what the options of LAUNCH say; --list: print the shell lines of the
    jobs, whose settings are written. Returns 0. Raises UserError."""
    from experiments.jobs import write_jobs
    from experiments.launch import job_lines, launcher

    if not options.list:
        texts = (options.launch, options.engine, options.address)
        with launcher(options.jobs, *(text or "" for text in texts)) as chosen:
            start(chosen)
        return 0
    for name in ("jobs", "launch", "engine", "address"):
        if getattr(options, name):
            raise UserError(f"--list runs nothing: give no --{name} with it")
    listed = jobs()
    write_jobs(listed)
    print("\n".join(job_lines(listed)))
    return 0
