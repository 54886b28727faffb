"""A model's adapters as a whole, in one folder: each in a folder of its own, and which of them are on.

save_adapters(model, "runs/mine/adapter")          adapters.json, math/, code/, both/ ...
load_adapters(model, "runs/mine/adapter")          the same again, in the same order, composed in the same way
"""

import json
from pathlib import Path

from torch import nn

from adapters.attach import adapter_names, adapters_named, in_order, remove, setup, switch, use
from adapters.compose import Composition, from_table
from adapters.formats.folders import load_adapter, save_adapter
from files.errors import UserError
from files.reading import read_json
from files.writing import make_folder, write_text

SETUP = "adapters.json"


def save_adapters(
    model: nn.Module, folder: str | Path, run: dict | None = None, overwrite: bool = False
) -> None:
    """Write every adapter of the model and which of them are on, composed as they are; in place of what is there only with overwrite=True.
    Raises UserError."""
    folder = Path(folder)
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: give another folder, or overwrite=True")
    names = sorted(
        adapter_names(model),
        key=lambda name: bool(next(iter(adapters_named(model, name).values())).members),
    )  # a fusion behind its members
    make_folder(folder)
    for name in names:
        save_adapter(model, folder / name, name, overwrite=overwrite)
    on = [entry.table() if isinstance(entry, Composition) else entry for entry in in_order(model)]
    write_text(
        folder / SETUP, json.dumps({"adapters": names, "on": on, "run": run or {}}, indent=2) + "\n"
    )


def load_adapters(model: nn.Module, folder: str | Path) -> dict:
    """Attach every adapter of the folder under its own name and switch them on as they were; returns the `run` section.

    Raises UserError, leaving the model as it was, when one of them does not fit.
    """
    folder = Path(folder)
    table = read_json(folder / SETUP)
    names, on = table.get("adapters"), table.get("on")
    listed = isinstance(names, list) and all(
        isinstance(name, str) and name.isidentifier() for name in names
    )
    if not listed or not isinstance(on, list):
        raise UserError(f"{folder / SETUP} should list 'adapters' and which are 'on'")
    before, loaded = setup(model), []
    try:
        for name in names:
            load_adapter(model, folder / name, name)
            loaded.append(name)
        use(model, [from_table(entry) for entry in on])
    except BaseException:
        for name in reversed(loaded):
            remove(model, name)
        switch(model, *before)
        raise
    run = table.get("run")
    return run if isinstance(run, dict) else {}


def load_any(model: nn.Module, folder: str | Path, name: str = "default") -> dict:
    """The adapter of a folder, under this name, or all of a folder that `save_adapters` wrote, under theirs; returns the `run` section."""
    return (
        load_adapters(model, folder)
        if (Path(folder) / SETUP).is_file()
        else load_adapter(model, folder, name)
    )
