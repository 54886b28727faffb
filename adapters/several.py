"""All adapters of a model in one folder: each in a folder of its own, and which of them are on.

save_adapters(model, "runs/mine/adapter")          adapters.json, math/, code/, both/ ...
load_adapters(model, "runs/mine/adapter")          the same again, in order, composed as they were
"""

import json
from pathlib import Path

from adapters.attach import adapter_names, adapters_named, in_order, unchanged_on_error, use
from adapters.compose import Average, Composition
from adapters.formats.folders import load_adapter, save_adapter
from adapters.rows import Rows
from files.errors import UserError
from files.reading import read_json
from files.typed import typed
from files.writing import make_folder, write_text
from model.language import LanguageModel

SETUP = "adapters.json"


def save_adapters(
    model: LanguageModel, folder: str | Path, run: dict | None = None, overwrite: bool = False
) -> None:
    """Write every adapter of the model and which of them are on, composed as they are.

    Only overwrite=True writes into a folder that holds something. Raises UserError.
    """
    folder = Path(folder)
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: give another folder, or overwrite=True")

    def is_fusion(name: str) -> bool:
        return bool(next(iter(adapters_named(model, name).values())).members)

    names = sorted(adapter_names(model), key=is_fusion)  # a fusion after its members
    make_folder(folder)
    for name in names:
        save_adapter(model, folder / name, name, overwrite=overwrite)
    on = [entry.table() if isinstance(entry, Composition) else entry for entry in in_order(model)]
    table = {"adapters": names, "on": on, "run": run or {}}
    write_text(folder / SETUP, json.dumps(table, indent=2) + "\n")


def load_adapters(model: LanguageModel, folder: str | Path) -> dict:
    """Attach every adapter of the folder under its own name, on as they were saved.

    Returns the `run` section. Raises UserError, with the model unchanged, if one does not fit.
    """
    path = Path(folder) / SETUP
    table = read_json(path)
    for key in ("adapters", "on"):
        if key not in table:
            raise UserError(f"{path} should list 'adapters' and which are 'on'")
    names = typed(table["adapters"], list[str], str(path), "adapters")
    if not all(name.isidentifier() for name in names):
        raise UserError(f"{path}: adapters = {names!r:.100} should be names of adapters")
    on = typed(table["on"], list, str(path), "on")
    with unchanged_on_error(model):
        for name in names:
            load_adapter(model, path.parent / name, name)
        use(model, [from_table(entry) for entry in on])
    run = table.get("run")
    return run if isinstance(run, dict) else {}


def from_table(entry) -> str | Composition:
    """A name, or what `table` of a composition gave, back again. Raises UserError."""
    if isinstance(entry, str):
        return entry
    keys = set(entry) if isinstance(entry, dict) else set()
    lists = keys and all(isinstance(value, list) for value in entry.values())
    if lists and keys == {"rows"}:
        return Rows(*entry["rows"])
    if lists and keys == {"average", "weights"}:
        return Average(*entry["average"], weights=entry["weights"])
    raise UserError(f"{entry!r:.100} is neither an adapter's name nor a composition")


def load_any(model: LanguageModel, folder: str | Path, name: str = "default") -> dict:
    """The adapter of a folder, under this name, or all that `save_adapters` wrote, under theirs.

    Returns the `run` section.
    """
    if (Path(folder) / SETUP).is_file():
        return load_adapters(model, folder)
    return load_adapter(model, folder, name)
