"""Recipes: tables of settings in train/recipes, or in a TOML file."""

from pathlib import Path

from adapters.config import named
from files.errors import UserError, unknown
from files.toml import read_toml

RECIPES = Path(__file__).parent / "recipes"


def recipe(name: str) -> dict:
    """The table of train/recipes/NAME.toml, or of a TOML file of that path. Raises UserError."""
    if name.endswith(".toml"):
        return read_toml(Path(name))
    known = sorted(path.stem for path in RECIPES.glob("*.toml"))
    if name not in known:
        raise unknown("recipe", name, known)
    return read_toml(RECIPES / f"{name}.toml")


def keys(table: dict) -> set[tuple[str, ...]]:
    """The paths of all values of a recipe or a file, without a recipe's [adapters]."""
    paths = set()
    for key, value in table.items():
        if key != "adapters":
            inner = keys(value) if isinstance(value, dict) else [()]
            paths |= {(key, *rest) for rest in inner}
    return paths


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
