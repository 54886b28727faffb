"""A grid of runs, models x adapters x seeds, and each model once without an adapter."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adapters.config import overlay, presets
from data.prompts import AUTO
from data.sources import load_data
from experiments.base import check_model
from experiments.folders import absolute_paths
from experiments.jobs import Job, run_jobs
from experiments.published import table_for
from experiments.table import Entry, entry, summary, write_table
from files.errors import UserError
from files.toml import parse_set, read_toml
from files.typed import from_table
from files.writing import make_folder, write_text
from model.registry import pocket_names
from train.settings import Settings, to_toml
from train.settings import settings as make_settings

OWN = ("model", "seed", "data", "data_dir")  # settings that the grid itself states
POCKET_DATA = "wordproblems"


@dataclass(frozen=True)
class Grid:
    """The runs of a grid. The fields are those of its TOML file."""

    models: list = field(default_factory=list)
    adapters: list = field(default_factory=list)
    seeds: list = field(default_factory=lambda: [0])
    data: str = ""
    data_dir: str = ""
    recipe: str = ""
    base: bool = True  # also each model without an adapter
    settings: dict = field(default_factory=dict)  # of every run, as in a run.toml
    set: list = field(default_factory=list)  # of every run, KEY=VALUE texts


def make_grid(
    path: Path | None = None,
    *,
    models: Sequence[str] | None = None,
    adapters: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    data: str | None = None,
    data_dir: str | None = None,
    recipe: str | None = None,
    sets: Sequence[str] = (),
    pocket: bool = False,
) -> Grid:
    """The grid of a TOML file, with the arguments that are given in place of its values.

    Models and adapters that are stated nowhere are those of the published table for the data, or
    with `pocket` the pocket models and every preset. The data is fetched once, here.
    Raises UserError.
    """
    grid = from_table(Grid, read_toml(path), str(path)) if path else Grid()
    given = {
        "models": models if models is None else list(models),
        "adapters": adapters if adapters is None else list(adapters),
        "seeds": seeds if seeds is None else list(seeds),
        "data": data,
        "data_dir": data_dir,
        "recipe": recipe,
    }
    given = {key: value for key, value in given.items() if value is not None}
    grid = replace(grid, **given, set=[*grid.set, *sets])
    if pocket:  # without the models alone: a run on word problems measures the base itself
        grid = replace(grid, data=grid.data or POCKET_DATA, base=False)
        default = {
            "models": pocket_names(),
            "adapters": [
                name for name, preset in presets().items() if preset.get("kind") != "fusion"
            ],
        }
    else:
        grid = replace(grid, data=grid.data or "math-v1")
        table = table_for(grid.data)
        default = {
            "models": list(table.models) if table else [],
            "adapters": list(table.grid) if table else [],
        }
    unset = {key for key in default if key not in given and not getattr(grid, key)}
    grid = replace(grid, **{key: default[key] for key in unset})
    check(grid)
    load_data(grid.data, data_dir_of(grid))
    return grid


def run_grid(
    grid: Grid, folder: Path, at_once: int = 1, say: Callable[[str], None] = print
) -> list[Entry]:
    """Run what is missing of the grid, `at_once` runs at a time, and write table.md, .html, .csv.

    Returns the entries of the table. Raises UserError where runs failed, or have nothing to show,
    after the table of the others is written.
    """
    if at_once < 1:
        raise UserError(f"--jobs {at_once} must be at least 1")
    jobs = jobs_of(grid, folder)
    say(f"{len(jobs)} runs in {folder}, {sum(job.done for job in jobs)} of them complete")
    failed = run_jobs(jobs, at_once, say)
    entries = [entry(job) for job in jobs if job not in failed]
    if entries:
        table = table_for(grid.data)
        write_table(folder, entries, table)
        files = ", ".join(str(folder / f"table.{kind}") for kind in ("md", "csv", "html"))
        say(f"\n{summary(entries, table).to_markdown()}\ntable: {files}")
    if failed:
        names = ", ".join(job.folder.name for job in failed)
        raise UserError(
            f"{len(failed)} of {len(jobs)} runs failed: {names}; the same command tries them again"
        )
    if wrong := [one for one in entries if one.wrong]:
        reasons = "; ".join(
            f"{one.model} {one.adapter}, {' and '.join(one.wrong)}" for one in wrong
        )
        raise UserError(f"{len(wrong)} of {len(jobs)} runs have nothing to show: {reasons}")
    return entries


def data_dir_of(grid: Grid) -> str:
    return "" if grid.data == POCKET_DATA else grid.data_dir


def check(grid: Grid) -> None:
    """Raise UserError for a grid that cannot be run as stated."""
    for key, kind, named in (
        ("models", str, "names"),
        ("adapters", str, "names"),
        ("seeds", int, "whole numbers"),
        ("set", str, "texts"),
    ):
        values = getattr(grid, key)
        empty = not values and key != "set"
        if empty or not all(type(value) is kind for value in values):
            hint = f": there is no published table for data {grid.data}, so say which" * empty
            raise UserError(f"{key} = {values!r} should be a list of {named}{hint}")
        names = [Path(value).name if key == "models" else value for value in values]
        twice = [name for name in names if names.count(name) > 1]
        if twice and key != "set":
            raise UserError(f"{key} has {twice[0]!r} twice: each has a folder with its name")
    check_settings("[settings]", grid.settings)
    for text in grid.set:
        check_settings(f"--set {text}", parse_set(text))
    for model in grid.models:
        check_model(model)


def check_settings(where: str, table: dict) -> None:
    """Raise UserError for settings of every run that the grid itself states."""
    for key in OWN:
        if key in table:
            own = key if key.startswith("data") else key + "s"
            raise UserError(f"{where}: {key} is stated by the grid itself; use its own {own}")
    if isinstance(table.get("adapter"), dict) and table["adapter"].keys() & {"preset", "kind"}:
        raise UserError(
            f"{where}: the adapters are stated by the grid itself; use its own adapters"
        )


def jobs_of(grid: Grid, folder: Path) -> list[Job]:
    """The jobs of a grid, each in a folder of its own, with its complete settings beside it.

    Raises UserError for settings that do not fit an adapter, and for a folder with results of other
    settings.
    """
    jobs = []
    runs = [("", 0)] if grid.base else []
    runs += [(adapter, seed) for adapter in grid.adapters for seed in grid.seeds]
    for model in grid.models:
        for adapter, seed in runs:
            numbered = f"-seed{seed}" if adapter and len(grid.seeds) > 1 else ""
            title = f"{Path(model).name}-{adapter or 'base'}{numbered}"
            settings = settings_of(grid, model, adapter, seed)
            check_same(folder / title, settings, adapter)
            job = Job(model, adapter, seed, folder / title, folder / f"{title}.toml")
            jobs.append((job, settings))
    make_folder(folder)
    for job, settings in jobs:
        write_text(job.config, to_toml(settings))
    return [job for job, _ in jobs]


def settings_of(grid: Grid, model: str, adapter: str, seed: int) -> Settings:
    """The settings of one run. Raises UserError."""
    own = {"model": model, "seed": seed, "data": grid.data, "data_dir": data_dir_of(grid)}
    table = overlay(own, grid.settings)
    sets = grid.set
    if adapter:
        table["adapter"] = {"preset": adapter} | grid.settings.get("adapter", {})
    else:  # the model alone: settings of the adapters do not apply
        table.pop("adapter", None)
        sets = [text for text in sets if "adapter" not in parse_set(text)]
    return absolute_paths(make_settings(None, grid.recipe or None, table, sets))


def check_same(folder: Path, settings: Settings, adapter: str) -> None:
    """Raise UserError where the results in a job's folder are of other settings."""
    file = folder / ("run.toml" if adapter else "evaluate.toml")
    if not file.is_file():
        return
    before, now = make_settings(str(file)).to_dict(), settings.to_dict()
    for table in (before, now):  # what does not change the result, or what a run fills in
        table.update(device="", threads=0, dtype="" if settings.dtype == "auto" else table["dtype"])
        if settings.template == AUTO:
            table["template"] = ""
        table["eval"].pop("batch_size")
    for key in now:
        if before[key] != now[key]:
            inner = []
            if isinstance(now[key], dict) and isinstance(before[key], dict):
                inner = [name for name in now[key] if before[key].get(name) != now[key][name]]
            raise UserError(
                f"{folder} holds results of other settings ({'.'.join([key, *inner[:1]])}): give "
                "another --out, or remove it"
            )
