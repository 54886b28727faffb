"""Folders of results, and settings whose paths hold from any working directory."""

import json
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from files.errors import UserError
from files.toml import read_toml
from files.writing import make_folder, wait_for, write_text

if TYPE_CHECKING:  # the command line needs this file before torch is loaded
    from train.settings import Settings


def fresh_folder(path: Path, numbered: bool, begun: Sequence[str] = ()) -> Path:
    """A folder for new results: `path`, or `path`-2, -3 ... where `numbered`.

    A folder that holds files is never chosen, but for temporary ones and those of `begun`, which a
    run that was killed as it began leaves. A numbered one is created here, so that several
    processes take one each; `remove_if_empty` where nothing came into it. Raises UserError where
    `path` itself is taken and `numbered` is False.
    """

    def left_behind(file: Path) -> bool:
        return file.name in begun or (file.name.startswith(".") and file.name.endswith(".tmp"))

    if not numbered:
        if path.exists() and not (path.is_dir() and all(map(left_behind, path.iterdir()))):
            unfinished = (path / "run.toml").is_file() and not (path / "result.json").is_file()
            hint = f", or resume its run with: python run.py --resume {path}" * unfinished
            state = "not empty" if path.is_dir() else "not a folder"
            raise UserError(f"{path} exists and is {state}: give another --out{hint}")
        return path
    make_folder(path.parent)
    for number in count(1):
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        try:
            candidate.mkdir()
            return candidate
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot make the folder {candidate}: {error.strerror}") from None
    raise AssertionError


def remove_if_empty(path: Path) -> None:
    with suppress(OSError):  # it is not empty, or not there
        path.rmdir()


def state_of(folder: Path, start_file: str) -> str:
    """Of the run in a folder: "new", "interrupted" or "complete"; waits while a process runs in it.

    start_file: what a run writes when it begins.
    """
    wait_for(folder)
    if (folder / "result.json").is_file():
        return "complete"
    return "interrupted" if (folder / start_file).is_file() else "new"


def absolute_paths(settings: "Settings") -> "Settings":
    """The settings with absolute paths, so that the run can be resumed from any directory."""

    def folder(name: str) -> str:
        return str(Path(name).resolve()) if name and Path(name).is_dir() else name

    def file(name: str) -> str:
        return str(Path(name).resolve()) if Path(name).is_file() else name

    return replace(
        settings,
        model=folder(settings.model),
        data=file(settings.data),
        data_dir=folder(settings.data_dir),
        tests=[file(name) for name in settings.tests],
        continue_from=folder(settings.continue_from),
        teacher=folder(settings.teacher),
        load={name: folder(where) for name, where in settings.load.items()},
    )


def check_whole(path: Path) -> None:
    """Compare a run.toml with what every run writes, before defaults stand in for what it lacks.

    Warns of settings that are missing, as in files of older versions. Raises UserError for one that
    was emptied or cut short.
    """
    from train.settings import Settings

    table, whole = read_toml(path), Settings().to_dict()
    left = [key for key in ("model", "data", "seed", "train", "eval") if key not in table]
    if left:
        raise UserError(f"{path} has no {', '.join(left)}: it was cut short or emptied")
    missing = [key for key in whole if key not in table]
    for name in ("train", "eval"):
        inner = table[name] if isinstance(table[name], dict) else {}
        missing += [f"{name}.{key}" for key in whole[name] if key not in inner]
    if missing:
        warnings.warn(
            f"{path} has no {', '.join(missing)}: it may have been cut short; the defaults are "
            "taken",
            stacklevel=2,
        )


def write_json(path: Path, table: dict) -> None:
    """Write the table as indented JSON, atomically."""
    write_text(path, json.dumps(table, indent=2) + "\n")
