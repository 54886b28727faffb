"""Folders of runs and evaluations, and settings whose paths do not depend on where we stand.

Importing this module does not import torch.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from files.errors import UserError

if TYPE_CHECKING:
    from train.settings import Settings


def fresh_folder(path: Path, numbered: bool) -> Path:
    """A folder for new results that is empty or does not exist; it is not created here.

    numbered: where `path` is taken, try path-2, path-3 and so on; else raise UserError.
    """
    candidate, number = path, 1
    while candidate.exists() and (not candidate.is_dir() or any(candidate.iterdir())):
        if not numbered:
            unfinished = (path / "run.toml").is_file() and not (path / "result.json").is_file()
            hint = f", or continue the run in it with: python run.py --resume {path}"
            raise UserError(
                f"{path} exists and is not {'empty' if path.is_dir() else 'a folder'}: "
                f"give another --out{hint if unfinished else ''}"
            )
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def absolute_paths(settings: "Settings") -> "Settings":
    """The settings with absolute paths, so that the run can be resumed from any folder."""

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
        load={name: folder(path) for name, path in settings.load.items()},
    )
