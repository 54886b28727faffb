"""table: train a grid of adapters on models, one resumable run after another."""

import argparse
from pathlib import Path

from cli.launch import LAUNCH, grid_of, launch_grid
from cli.options import DATA, SETTINGS, add, pick


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a grid of adapters on models and write table.md, table.csv and table.html beside\n"
        "the published figures. Without options: the grid of the paper's Table 1."
    )
    parser.add_argument(
        "grid", nargs="?", help="a name of experiments/grids, or a TOML file of the same fields"
    )
    table = {
        "--pocket": (bool, "the pocket models and every preset; needs no network"),
        "--models NAME,NAME": "names or folders",
        "--adapters NAME,NAME": "presets",
        "--seeds N,N": "0,1,2: every run once with each",
        "--data NAME": "training data (math-v1; --pocket: wordproblems)",
        "--out FOLDER": "of the runs and the table (runs/table); complete runs there are kept",
    }
    table |= pick(DATA, "--data-dir") | pick(SETTINGS, "--recipe", "--set")
    add(parser, "", table, set="a setting of every run; may be repeated")
    add(parser, "runs", LAUNCH)


def run(options: argparse.Namespace) -> int:
    from experiments.grid_jobs import jobs_of, run_grid

    grid, out = grid_of(options), Path(options.out or "runs/table")
    return launch_grid(options, lambda: jobs_of(grid, out), lambda by: run_grid(grid, out, by))
