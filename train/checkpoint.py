"""The state of a training run in one file."""

import pickle
from pathlib import Path

import torch

from model.errors import UserError
from model.files import write_atomically


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
    if not isinstance(state, dict) or not isinstance(state.get("fingerprints"), dict):
        raise UserError(f"{path} is not a checkpoint of this program")
    saved = state["fingerprints"]
    changed = sorted(key for key in saved.keys() | fingerprints.keys() if saved.get(key) != fingerprints.get(key))
    if changed:
        raise UserError(f"{path} was made with another {', '.join(changed)}; resume with what it was started with, or start a new run")
    return state
