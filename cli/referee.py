"""referee: train methods with equal budgets of rates and seeds, and say which differ."""

import argparse
from pathlib import Path

from cli.launch import LAUNCH, grid_of, launch_grid
from cli.options import SETTINGS, add, pick


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "grid", help="a name of experiments/grids (referee), or a TOML file of the same fields"
    )
    table = {
        "--pocket": (bool, "the grid's form for the pocket models; needs no network"),
        "--adapters NAME,NAME": "the methods: presets",
        "--seeds N,N": "0,1,2: every method and rate once with each",
        "--data-dir FOLDER": "folder that holds the paper's dataset/ (default: fetch the data)",
        "--out FOLDER": "of the runs and the report (runs/referee); complete runs there are kept",
    }
    add(parser, "", table | pick(SETTINGS, "--set"), set="a setting of every run; may be repeated")
    add(parser, "runs", LAUNCH)


def run(options: argparse.Namespace) -> int:
    from experiments.referee import next_jobs, run_referee

    grid, out = grid_of(options), Path(options.out or "runs/referee")
    return launch_grid(options, lambda: next_jobs(grid, out), lambda by: run_referee(grid, out, by))
