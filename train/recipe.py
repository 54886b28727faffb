"""Recipes: tables of settings in train/recipes, or in a TOML file.

A recipe may hold [adapters.PRESET] tables, laid over that preset, and [[when]] entries, whose
settings are laid over the recipe for runs of these models, data and adapters:

    [[when]]
    adapter = ["final-prefix"]
    use.train = { batch_size = 8, epochs = 5, learning_rate = 3e-2 }
"""

from dataclasses import dataclass, field
from pathlib import Path

from adapters.config import named, overlay
from files.errors import UserError, unknown
from files.toml import flat, read_toml
from files.typed import from_table

RECIPES = Path(__file__).parent / "recipes"


def recipe(name: str) -> dict:
    """The table of train/recipes/NAME.toml, or of a TOML file of that path. Raises UserError."""
    if name.endswith(".toml"):
        return read_toml(Path(name))
    known = sorted(path.stem for path in RECIPES.glob("*.toml"))
    if name not in known:
        raise unknown("recipe", name, known)
    return read_toml(RECIPES / f"{name}.toml")


@dataclass(frozen=True)
class When:
    """Settings of a recipe for some runs only. A condition that is empty holds for every run."""

    model: list[str] = field(default_factory=list)  # names; a folder goes by its last part
    data: list[str] = field(default_factory=list)
    adapter: list[str] = field(default_factory=list)  # presets
    use: dict = field(default_factory=dict)  # settings

    def holds(self, model: str, data: str, adapter: str) -> bool:
        chosen = ((self.model, Path(model).name), (self.data, data), (self.adapter, adapter))
        return all(not names or name in names for names, name in chosen)


def for_run(table: dict, where: str, model: str, data: str, adapter: str) -> dict:
    """The recipe's table with the [[when]] entries for a run laid over it, later ones last.

    adapter: the preset, "" for none. Raises UserError.
    """
    table = dict(table)
    entries = table.pop("when", [])
    if not isinstance(entries, list):
        raise UserError(f"{where}: when should be a list of tables, [[when]]")
    for entry in entries:
        when = from_table(When, entry, f"{where} [[when]]")
        for name in when.adapter:
            preset_tables({name: {}}, f"{where} [[when]]")
        if when.use.keys() & {"model", "data", "adapter", "adapters"}:
            raise UserError(f"{where} [[when]]: use cannot change model, data or adapter")
        if when.holds(model, data, adapter):
            table = overlay(table, when.use)
    return table


def keys(table: dict) -> set[str]:
    """The paths of all values of a recipe or a file, without a recipe's [adapters], [[when]]."""
    return {path for path in flat(table) if path.split(".")[0] not in ("adapters", "when")}


def preset_tables(tables, where: str) -> dict[str, dict]:
    """A recipe's [adapters.NAME] tables: each must name a preset. Raises UserError."""
    for name, table in tables.items() if isinstance(tables, dict) else [("adapters", None)]:
        if not isinstance(table, dict):
            raise UserError(f"{where}: adapters should hold tables, such as [adapters.lora]")
        try:
            named(name, {})
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    return tables
