"""A grid of runs, from the options or a TOML file: models x adapters x seeds, and each model once without an adapter."""

import argparse
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from adapters.config import overlay, presets
from data.prompts import AUTO
from data.sources import load_data
from experiments.options import seeds_of, whole_paths
from experiments.published import table_for
from experiments.table import Job
from files.errors import UserError
from files.toml import parse_set, read_toml
from files.writing import make_folder, write_text
from model.registry import pocket_names
from train.base import check_model
from train.settings import Settings, build, settings, to_toml


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


OWN = ("model", "seed", "data", "data_dir")  # what a grid says itself


def grid_from(options: argparse.Namespace) -> Grid:
    """The grid of a TOML file with the options laid over it; what neither says is that of the published table. Raises UserError."""
    grid = build(
        Grid, read_toml(Path(options.grid)) if options.grid else {}, options.grid or "options"
    )
    said = {
        key: getattr(options, key)
        for key in ("data", "data_dir", "recipe")
        if getattr(options, key) is not None
    }
    said |= {
        key: [part for part in getattr(options, key).split(",") if part]
        for key in ("models", "adapters")
        if getattr(options, key) is not None
    }
    if options.seeds is not None:
        said["seeds"] = seeds_of(options.seeds)
    grid = replace(grid, **said, set=[*grid.set, *options.set])
    if options.pocket:
        alone = [
            name for name, preset in presets().items() if preset.get("kind") != "fusion"
        ]  # a fusion needs adapters to be trained before
        grid = replace(
            grid, data=grid.data or "wordproblems", base=False
        )  # its runs measure the base themselves
        models, adapters = pocket_names(), alone
    else:
        grid = replace(grid, data=grid.data or "math-v1")
        published = table_for(grid.data)
        models, adapters = (
            (list(published.models), list(published.adapters)) if published else ([], [])
        )
    grid = replace(
        grid,
        models=grid.models if grid.models or "models" in said else models,
        adapters=grid.adapters if grid.adapters or "adapters" in said else adapters,
    )
    check(grid)
    load_data(
        grid.data, "" if grid.data == "wordproblems" else grid.data_dir
    )  # fetched once, before the runs; what is wrong with it is said once
    return grid


def check(grid: Grid) -> None:
    """Raise UserError for a grid that cannot be run as it says."""
    for key, kind in (("models", str), ("adapters", str), ("seeds", int), ("set", str)):
        values = getattr(grid, key)
        if not all(type(value) is kind for value in values) or (not values and key != "set"):
            empty = (
                f": there is no published table for data {grid.data}, so say which"
                if not values
                else ""
            )
            raise UserError(
                f"{key} = {values!r} should be a list of {'whole numbers' if kind is int else 'texts' if key == 'set' else 'names'}{empty}"
            )
        names = [Path(value).name if key == "models" else value for value in values]
        twice = [name for name in names if names.count(name) > 1]
        if twice and key != "set":
            raise UserError(
                f"{key} has {twice[0]!r} twice: each has a folder of its own, by that name"
            )
    for where, table in [
        ("[settings]", grid.settings),
        *((f"--set {text}", parse_set(text)) for text in grid.set),
    ]:
        for key in OWN:
            if key in table:
                raise UserError(
                    f"{where}: {key} is what the grid itself says; use its own {key if key.startswith('data') else key + 's'}"
                )
        if isinstance(table.get("adapter"), dict) and table["adapter"].keys() & {"preset", "kind"}:
            raise UserError(
                f"{where}: the adapters are what the grid itself says; use its own adapters"
            )
    for model in grid.models:
        check_model(model)


def jobs_of(grid: Grid, folder: Path) -> list[Job]:
    """The jobs of a grid, each in a folder of its own, with its complete settings in a file beside it.

    Raises UserError for settings that do not fit an adapter, and for a folder with results made under other settings.
    """
    jobs = []
    for model in grid.models:
        name = Path(model).name
        whole = [("", 0)] if grid.base else []
        for adapter, seed in [
            *whole,
            *((adapter, seed) for adapter in grid.adapters for seed in grid.seeds),
        ]:
            title = f"{name}-{adapter or 'base'}" + (
                f"-seed{seed}" if adapter and len(grid.seeds) > 1 else ""
            )
            made = made_for(grid, model, adapter, seed)
            check_same(folder / title, made, adapter)
            jobs.append((Job(model, adapter, seed, folder / title, folder / f"{title}.toml"), made))
    make_folder(folder)
    for job, made in jobs:
        write_text(job.config, to_toml(made))
    return [job for job, _ in jobs]


def made_for(grid: Grid, model: str, adapter: str, seed: int) -> Settings:
    """The settings of one run. Raises UserError."""
    table = overlay(
        {
            "model": model,
            "seed": seed,
            "data": grid.data,
            "data_dir": "" if grid.data == "wordproblems" else grid.data_dir,
        },
        grid.settings,
    )
    sets = grid.set
    if adapter:
        table["adapter"] = {"preset": adapter} | grid.settings.get("adapter", {})
    else:  # measured alone: what is said of the adapters does not count
        table.pop("adapter", None)
        sets = [text for text in sets if "adapter" not in parse_set(text)]
    return whole_paths(settings(None, grid.recipe or None, table, sets))


def check_same(folder: Path, made: Settings, adapter: str) -> None:
    """Raise UserError when what is in a job's folder was made under other settings."""
    file = folder / ("run.toml" if adapter else "evaluate.toml")
    if not file.is_file():
        return
    before = asdict(settings(str(file)))
    now = asdict(made)
    for table in (before, now):  # where it ran, and with which batch of answers, changes nothing
        table.update(device="", threads=0, dtype="" if made.dtype == "auto" else table["dtype"])
        if made.template == AUTO:  # a run writes down which one it came to
            table["template"] = ""
        table["eval"].pop("batch_size")
    for key in now:
        if before[key] != now[key]:
            inner = (
                [one for one in now[key] if before[key].get(one) != now[key][one]]
                if isinstance(now[key], dict) and isinstance(before[key], dict)
                else []
            )
            raise UserError(
                f"{folder} was made with other settings ({'.'.join([key, *inner[:1]])}): give another --out, or remove it"
            )
