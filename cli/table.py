"""table: train a grid of adapters on models, one resumable run after another."""

import argparse
from pathlib import Path

from cli.options import FLAG, add, parse_numbers, split_names


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Train a grid of adapters on models and write table.md, table.csv and table.html beside\n"
        "the published figures. Without options: the grid of the paper's Table 1."
    )
    parser.add_argument(
        "grid",
        nargs="?",
        help="a TOML file: data, models, adapters, seeds, recipe, base, [settings] of every run",
    )
    parser.add_argument(
        "--pocket", help="the pocket models and every preset; needs no network", **FLAG
    )
    parser.add_argument("--models", help="names or folders, NAME,NAME")
    parser.add_argument("--adapters", help="presets, NAME,NAME")
    parser.add_argument("--seeds", help="0,1,2: every run once with each")
    parser.add_argument("--data", help="training data (math-v1; --pocket: wordproblems)")
    add(parser, "--data-dir", "--recipe", "--set", set="a setting of every run; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (1)")
    parser.add_argument(
        "--out", help="folder of the runs and the table (runs/table); complete runs there are kept"
    )


def run(options: argparse.Namespace) -> int:
    from experiments.grid import make_grid, run_grid

    grid = make_grid(
        options.grid and Path(options.grid),
        models=split_names(options.models),
        adapters=split_names(options.adapters),
        seeds=parse_numbers("--seeds", options.seeds, "0,1,2"),
        data=options.data,
        data_dir=options.data_dir,
        recipe=options.recipe,
        sets=options.set,
        pocket=options.pocket,
    )
    run_grid(grid, Path(options.out or "runs/table"), options.jobs)
    return 0
