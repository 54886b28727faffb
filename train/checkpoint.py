"""Files that are complete or not there: written beside their final name, flushed to disk, renamed."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import torch

from model.errors import UserError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary path), then fsync and rename it to `path`; a kill at any moment leaves the old file or the new one.

    Raises UserError naming the path when the disk is full or the folder cannot be written; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise UserError(f"cannot write {path}: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_checkpoint(path: Path, state: dict) -> None:
    """All of a training state in one file, so that its parts always agree on one step."""
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def load_checkpoint(path: Path, fingerprints: dict) -> dict:
    """The state saved at `path`. Raises UserError when it is unreadable or was made with another base, adapter, data or seed."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: there is no checkpoint to resume from") from None
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from None
    saved = state.get("fingerprints", {})
    changed = sorted(key for key in saved.keys() | fingerprints.keys() if saved.get(key) != fingerprints.get(key))
    if changed:
        raise UserError(f"{path} was made with another {', '.join(changed)}; resume with what it was started with, or start a new run")
    return state
