"""The jobs of a grid: each run with its complete settings, checked before anything is trained."""

from collections.abc import Callable
from pathlib import Path

from adapters.config import overlay
from data.prompts import AUTO
from experiments.axes import Values, as_table, combinations, value_text, values_name, values_text
from experiments.entries import Entry, entry
from experiments.folders import absolute_paths
from experiments.grid import Grid, data_dir_of, data_of, parts_of
from experiments.jobs import HERE, Job, Launcher, refuse_failed, run_all
from experiments.layout import with_adapter
from experiments.published import table_for
from experiments.table import summary, write_table
from files.errors import UserError
from files.toml import parse_set
from train.settings import Settings
from train.settings import settings as make_settings

OF_TRAINING = ("adapter.", "train.", "only_right")  # axes that the model alone does not depend on


def run_grid(
    grid: Grid, folder: Path, launcher: Launcher = HERE, say: Callable[[str], None] = print
) -> list[Entry]:
    """Run what is missing of the grid and write its table.

    Returns the entries of the table. Raises UserError where runs failed, or have nothing to show,
    after the table of the others is written.
    """
    jobs = jobs_of(grid, folder)
    failed = run_all(jobs, folder, launcher, say)
    entries = [entry(job) for job in jobs if job not in failed]
    if entries:
        table = table_for(data_of(parts_of(grid)[0])[0])  # of the grid's (first) data
        write_table(folder, entries, table)
        files = ", ".join(str(folder / f"table.{kind}") for kind in ("md", "csv", "html"))
        say(f"\n{summary(entries, table).to_markdown()}\ntable: {files}")
    refuse_failed(failed, jobs)
    if wrong := [one for one in entries if one.wrong]:
        reasons = "; ".join(
            f"{one.model} {one.adapter}, {' and '.join(one.wrong)}" for one in wrong
        )
        raise UserError(f"{len(wrong)} of {len(jobs)} runs have nothing to show: {reasons}")
    return entries


def jobs_of(grid: Grid, folder: Path) -> list[Job]:
    """The jobs of a grid, each with a folder of its own below `folder`. Nothing is written.

    Raises UserError for a setting that does not fit, naming axis and value, and for a folder with
    results of other settings.
    """
    jobs: dict[Path, Job] = {}
    for part in parts_of(grid):
        runs = combinations(part.axes, part.combine, part.sample)
        of_model = [
            {path: value for path, value in run.items() if not path.startswith(OF_TRAINING)}
            for run in runs
        ]
        for model in part.models:
            bases = [job_of(part, folder, model, "", 0, run) for run in of_model * part.base]
            for job in bases:  # the same model alone serves several runs
                jobs.setdefault(job.folder, job)
            for adapter in part.adapters:
                for run in runs:
                    check_run(part, model, adapter, run)
                    for seed in part.seeds:
                        job = job_of(part, folder, model, adapter, seed, run)
                        if job.folder in jobs:
                            raise UserError(f"two runs of the grid are called {job.folder.name}")
                        jobs[job.folder] = job
    for job in jobs.values():
        check_same(job.folder, job.settings, job.adapter)
    return list(jobs.values())


def job_of(grid: Grid, folder: Path, model: str, adapter: str, seed: int, values: Values) -> Job:
    """One job of a grid without parts; adapter "": the model alone. Raises UserError."""
    numbered = [f"seed{seed}"] if adapter and len(grid.seeds) > 1 else []
    name = "-".join([Path(model).name, adapter or "base", *values_name(values), *numbered])
    return Job(settings_of(grid, model, adapter, seed, values), adapter, folder / name, values)


def settings_of(grid: Grid, model: str, adapter: str, seed: int, values: Values) -> Settings:
    """The settings of one run. Raises UserError."""
    data = values.get("data", grid.data)
    own = {"model": model, "seed": seed, "data": data, "data_dir": data_dir_of(grid, data)}
    table = overlay(overlay(own, grid.settings), as_table(values))
    sets = grid.set
    if adapter:
        table["adapter"] = {"preset": adapter} | table.get("adapter", {})
    else:  # the model alone: settings of the adapters do not apply
        table.pop("adapter", None)
        sets = [text for text in sets if "adapter" not in parse_set(text)]
    return absolute_paths(make_settings(None, grid.recipe or None, table, sets))


def check_run(grid: Grid, model: str, adapter: str, values: Values) -> None:
    """Raise UserError, naming axis and value, for settings or sites that are refused."""

    def refusal(chosen: Values) -> str:
        try:
            with_adapter(settings_of(grid, model, adapter, grid.seeds[0], chosen), "cpu")
        except UserError as error:
            return str(error)
        return ""

    if not (why := refusal(values)):
        return
    if not values or (why_without := refusal({})):
        raise UserError(why if not values else why_without)
    for path, value in values.items():
        if alone := refusal({path: value}):
            raise UserError(f"axis {path} = {value_text(value)} with {adapter}: {alone}")
    raise UserError(f"axes at {values_text(values)} with {adapter}: {why}")


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
