"""A grid of runs: models x adapters x seeds x any axes, and each model once without an adapter."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from adapters.config import independent_presets, overlay
from data.sources import load_data
from experiments.axes import check_names, flat_axes
from experiments.base import check_model
from experiments.published import table_for
from files.errors import UserError, unknown
from files.toml import flat, parse_set, read_toml
from files.typed import Range, from_table, typed_values
from model.registry import pocket_names

GRIDS = Path(__file__).parent / "grids"
POCKET_DATA = "wordproblems"
OWN = {  # settings that the grid itself states, and what states them
    "model": "models", "seed": "seeds", "data": "data", "data_dir": "data_dir",
    "adapter.preset": "adapters", "adapter.kind": "adapters",
}  # fmt: skip


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
    axes: dict = field(default_factory=dict)  # path of a setting -> its values
    combine: Literal["product", "list"] = "product"  # of the axes: every combination, or in step
    sample: Annotated[int, Range(0)] = 0  # combinations to draw; 0: all
    settings: dict = field(default_factory=dict)  # of every run, as in a run.toml
    set: list = field(default_factory=list)  # of every run, KEY=VALUE texts
    parts: list = field(default_factory=list)  # tables of these fields, each a grid over this one
    pocket: dict = field(default_factory=dict)  # the same for --pocket


def grid_file(name: str) -> Path:
    """The file of a grid: one of experiments/grids by its name, or a path. Raises UserError."""
    if name.endswith(".toml") or Path(name).is_file():
        return Path(name)
    known = sorted(path.stem for path in GRIDS.glob("*.toml"))
    if name not in known:
        raise unknown("grid", name, known)
    return GRIDS / f"{name}.toml"


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
    with `pocket` the pocket models and every preset; a file's [pocket] table is laid over it then.
    Of a grid in parts `adapters` chooses. The data is fetched once, here. Raises UserError.
    """
    table = read_toml(path) if path else {}
    from_table(Grid, table, str(path))
    if pocket and path and "pocket" not in table:
        raise UserError(f"{path} has no [pocket] table: --pocket needs it, or no file")
    if pocket:
        if "pocket" in table.get("pocket", {}):
            raise UserError(f"{path} [pocket]: pocket belongs to the whole grid")
        table = overlay(table, table.get("pocket", {}))
    grid = from_table(Grid, table, str(path))
    given = {"models": models, "adapters": adapters, "seeds": seeds}
    given = {key: list(values) for key, values in given.items() if values is not None}
    texts = {"data": data, "data_dir": data_dir, "recipe": recipe}
    given |= {key: text for key, text in texts.items() if text is not None}
    if grid.parts and adapters is not None:
        given["parts"] = chosen_parts(grid, given.pop("adapters"))
    grid = replace(grid, **given, set=[*grid.set, *sets], axes=flat_axes(grid.axes))
    if pocket:
        grid = replace(grid, data=grid.data or POCKET_DATA)
        if not path:  # a run on word problems measures the base itself
            grid = replace(grid, base=False)
        default = {"models": pocket_names(), "adapters": independent_presets()}
    else:
        pocket = grid.models and all(str(name).startswith("pocket-") for name in grid.models)
        grid = replace(grid, data=grid.data or (POCKET_DATA if pocket else "math-v1"))
        published = table_for(grid.data)
        default = {
            "models": list(published.models) if published else [],
            "adapters": list(published.grid) if published else [],
        }
    unset = {key for key in default if key not in given and not getattr(grid, key)}
    if grid.parts:
        unset -= {"adapters"}
    grid = replace(grid, **{key: default[key] for key in unset})
    for part in parts_of(grid):
        check(part)
        for name in data_of(part):
            load_data(name, data_dir_of(part, name))
    return grid


def parts_of(grid: Grid) -> list[Grid]:
    """The grids that a grid is made of: its parts laid over it, or itself. Raises UserError."""
    if not grid.parts:
        return [grid]
    parts = []
    for number, table in enumerate(grid.parts, 1):
        values = typed_values(Grid, table, f"[[parts]] {number}")
        if inner := values.keys() & {"parts", "pocket"}:
            raise UserError(f"[[parts]] {number}: {min(inner)} belongs to the whole grid")
        part = replace(grid, parts=[], **values)
        part = replace(
            part,
            axes=grid.axes | flat_axes(values.get("axes", {})),
            settings=overlay(grid.settings, values.get("settings", {})),
            set=[*grid.set, *values.get("set", [])],
        )
        parts.append(part)
    return parts


def chosen_parts(grid: Grid, adapters: Sequence[str]) -> list[dict]:
    """The parts of a grid with these adapters only. Raises UserError for one that no part has."""
    of_part = [table.get("adapters", grid.adapters) for table in grid.parts]
    known = dict.fromkeys(name for names in of_part for name in names)
    for name in adapters:
        if name not in known:
            raise unknown("adapter of the grid's parts", name, known)
    chosen = [[name for name in names if name in adapters] for names in of_part]
    return [t | {"adapters": names} for t, names in zip(grid.parts, chosen, strict=True) if names]


def data_of(grid: Grid) -> list[str]:
    """The data sets of a grid without parts."""
    return grid.axes.get("data", [grid.data])


def data_dir_of(grid: Grid, data: str) -> str:
    return "" if data == POCKET_DATA else grid.data_dir


def check(grid: Grid) -> None:
    """Raise UserError for a grid without parts that cannot be run as stated."""
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
    check_names([path for path in grid.axes if path not in OWN])
    refuse_own("[settings]", flat(grid.settings))
    refuse_own("[axes]", [path for path in grid.axes if path != "data"])
    for text in grid.set:
        paths = flat(parse_set(text))
        refuse_own(f"--set {text}", paths)
        if both := [path for path in paths if path in grid.axes]:
            raise UserError(f"--set {text}: {both[0]} is an axis of the grid")
    for model in grid.models:
        check_model(model)


def refuse_own(where: str, paths: Iterable[str]) -> None:
    """Raise UserError for settings of every run that the grid itself states."""
    for path in paths:
        if path == "adapter":
            raise UserError(f"{where}: adapter should be a table, such as adapter.r")
        if path in OWN:
            raise UserError(
                f"{where}: {path} is stated by the grid itself; use its own {OWN[path]}"
            )
