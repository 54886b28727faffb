"""A grid of runs, from the options or a TOML file: models x adapters x seeds, and each model once without an adapter."""

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from adapters.config import presets
from adapters.config import resolve as resolve_adapter
from data.sources import load_data
from eval.published import table_for
from eval.table import Job
from model.errors import UserError
from model.files import make_folder, write_text
from model.registry import pocket_names
from train.experiment import check_model
from train.settings import build, read_toml, settings, table_text


@dataclass(frozen=True)
class Grid:
    """What a grid is made of."""

    models: list = field(default_factory=list)
    adapters: list = field(default_factory=list)
    seeds: list = field(default_factory=lambda: [0])
    data: str = ""
    data_dir: str = ""
    recipe: str = ""
    base: bool = True  # also each model without an adapter
    settings: dict = field(default_factory=dict)  # of every run, as in a run.toml
    set: list = field(default_factory=list)  # of every run, as --set has them


def grid_from(options: argparse.Namespace) -> Grid:
    """The grid of a TOML file with the options laid over it; what neither says is that of the published table. Raises UserError."""
    table = read_toml(Path(options.grid)) if options.grid else {}
    table |= {key: getattr(options, key) for key in ("data", "data_dir", "recipe") if getattr(options, key) is not None}
    table |= {key: [part for part in getattr(options, key).split(",") if part] for key in ("models", "adapters") if getattr(options, key) is not None}
    if options.seeds is not None:
        try:
            table["seeds"] = [int(seed) for seed in options.seeds.split(",")]
        except ValueError:
            raise UserError(f"--seeds {options.seeds!r} should be whole numbers, such as 0,1,2") from None
    if options.pocket:
        alone = [name for name, preset in presets().items() if preset.get("kind") != "fusion"]  # a fusion needs adapters to be trained before
        table = {"models": pocket_names(), "adapters": alone, "data": "wordproblems", "base": False} | table  # its runs measure the base themselves
    else:
        published = table_for(table.setdefault("data", "math-v1"))
        if published is None and not (table.get("models") and table.get("adapters")):
            raise UserError(f"there is no published table for data {table['data']}: say which --models and --adapters")
        table = ({"models": list(published.models), "adapters": list(published.adapters)} if published else {}) | table
    table["set"] = [*table.get("set", []), *options.set]
    grid = build(Grid, table, options.grid or "options")
    for key in ("models", "adapters", "seeds"):
        if not getattr(grid, key) or not all(type(value) is (int if key == "seeds" else str) for value in getattr(grid, key)):
            raise UserError(f"{key} = {getattr(grid, key)!r} should be a list of {'whole numbers' if key == 'seeds' else 'names'}")
    for adapter in grid.adapters:
        resolve_adapter(adapter)
    for model in grid.models:
        check_model(model)
        settings(None, grid.recipe or None, {"model": model, **grid.settings}, grid.set)
    load_data(grid.data, grid.data_dir if grid.data != "wordproblems" else "")  # fetched once, before the runs; what is wrong with it is said once
    return grid


def jobs_of(grid: Grid, folder: Path) -> list[Job]:
    """The jobs of a grid, each in a folder of its own; the settings that all share are written into `folder`."""
    shared = ["--data", grid.data, *(["--data-dir", grid.data_dir] if grid.data_dir else []), *(["--recipe", grid.recipe] if grid.recipe else [])]
    if grid.settings:
        make_folder(folder)
        write_text(folder / "settings.toml", table_text(grid.settings))
        shared += ["--config", str(folder / "settings.toml")]
    shared += [word for text in grid.set for word in ("--set", text)]
    jobs = []
    for model in grid.models:
        name = Path(model).name
        if grid.base:
            jobs.append(Job(model, "", 0, folder / f"{name}-base", tuple(shared)))
        for adapter in grid.adapters:
            for seed in grid.seeds:
                title = f"{name}-{adapter}" + (f"-seed{seed}" if len(grid.seeds) > 1 else "")
                jobs.append(Job(model, adapter, seed, folder / title, tuple(shared)))
    return jobs
