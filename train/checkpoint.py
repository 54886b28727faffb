"""The state of a training run, all of it in one file, so that its parts always agree on one step.

checkpoint-000100.pt holds the state after 100 steps. The newest N of a run's folder are kept; an
older one is removed only when the newer is on the disk.
"""

import math
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from adapters.in_use import named_buffers
from files.errors import UserError
from files.pickles import check_pickle, is_zip
from files.writing import write_atomically
from model.language import LanguageModel
from train.optim import AdamW, LossScale
from train.stored_state import check_state


class NotFinite(UserError):
    """Training ended because gradients or weights were not finite."""


@dataclass
class State:
    """What a run carries from step to step; batches and dropout follow from seed and step alone."""

    model: LanguageModel
    parameters: dict[str, nn.Parameter]
    optimizer: AdamW
    scale: LossScale
    step: int = 0
    skipped: int = 0  # steps whose gradient was not finite
    skipped_in_a_row: int = 0
    best: dict | None = None  # step, loss and weights of the lowest validation loss so far

    def validated(self, loss: float) -> None:
        """Keep a copy of the weights on the CPU if this validation loss is the lowest so far.

        NaN never is. Raises UserError as `weights` does.
        """
        weights = self.weights()
        if math.isfinite(loss) and (self.best is None or loss < self.best["loss"]):
            copies = {
                kind: {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
                for kind, tensors in weights.items()
            }
            self.best = {"step": self.step, "loss": loss, **copies}

    @property
    def validation(self) -> dict:
        """The lowest validation loss so far and its step; empty if there was no validation."""
        return {"best_step": self.best["step"], "best_loss": self.best["loss"]} if self.best else {}

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Trained parameters and the adapters' buffers, by name.

        Raises UserError when a parameter is not finite.
        """
        for name, parameter in self.parameters.items():
            if not parameter.isfinite().all():
                raise NotFinite(
                    f"{name} is not finite after step {self.step}: lower train.learning_rate; "
                    "the last checkpoint is from before"
                )
        return {
            "parameters": {name: parameter.detach() for name, parameter in self.parameters.items()},
            "buffers": named_buffers(self.model),
        }

    @torch.no_grad()
    def restore_weights(self, saved: dict[str, dict[str, Tensor]]) -> None:
        for name, tensor in {**self.parameters, **named_buffers(self.model)}.items():
            tensor.copy_(saved["parameters" if name in self.parameters else "buffers"][name])

    def save(
        self, folder: Path, fingerprints: dict[str, str], keep: int = 1, write: bool = True
    ) -> None:
        """Write folder/checkpoint-STEP.pt, then remove all but the newest `keep`.

        write=False only checks that the weights are finite. Raises UserError; older files stay.
        """
        weights = self.weights()
        if write:
            state = {
                "step": self.step,
                "skipped": self.skipped,
                "skipped_in_a_row": self.skipped_in_a_row,
                "fingerprints": fingerprints,
                "scale": vars(self.scale),
                "optimizer": self.optimizer.state_dict(),
                "best": self.best,
            }
            save_checkpoint(folder, self.step, state | weights, keep)

    def rescue(self, folder: Path, fingerprints: dict[str, str], keep: int) -> None:
        """Save the last whole step of a run that cannot go on, unless that is done."""
        newest = folder / name_of(self.step)
        if self.step and not newest.exists():
            self.save(folder, fingerprints, keep)
            tqdm.write(f"saved after step {self.step}")

    def load(self, folder: Path, fingerprints: dict[str, str], total: int) -> None:
        """Continue from the newest checkpoint in `folder` that fits a run of `total` steps.

        Raises UserError when there is none, or it was made with other fingerprints.
        """

        def check(saved: dict) -> None:
            check_state(saved, self.parameters, named_buffers(self.model), self.optimizer, total)

        saved = load_checkpoint(folder, fingerprints, check)
        for name in ("step", "skipped", "skipped_in_a_row", "best"):
            setattr(self, name, saved[name])
        self.restore_weights(saved)
        self.optimizer.load_state_dict(saved["optimizer"])
        vars(self.scale).update(saved["scale"])


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run's folder, the newest last."""
    steps = {
        path: int(match[1])
        for path in folder.glob("checkpoint-*.pt")
        if (match := re.fullmatch(r"checkpoint-(\d+)\.pt", path.name))
    }
    return sorted(steps, key=steps.get)


def name_of(step: object) -> str:
    """The file of the checkpoint after a step; "" for what is no step."""
    return f"checkpoint-{step:06}.pt" if type(step) is int else ""


def save_checkpoint(folder: Path, step: int, state: dict, keep: int = 1) -> None:
    """Write the state as the checkpoint of this step, then remove all but the newest `keep`.

    Raises UserError.
    """
    for temporary in folder.glob(".checkpoint-*.tmp"):  # of a process that was killed
        temporary.unlink(missing_ok=True)
    path = folder / name_of(step)
    write_atomically(path, lambda temporary: torch.save(state, temporary))
    paths = checkpoints(folder)
    newest = paths[: paths.index(path) + 1][-keep:]  # one with a higher step could not be read
    for other in paths:
        if other not in newest:
            other.unlink()


def load_checkpoint(
    folder: Path, fingerprints: dict[str, str], check: Callable[[dict], None] = lambda state: None
) -> dict:
    """The newest state in `folder` that can be read and passes `check`, which raises UserError.

    Prints which it is. Raises UserError when there is none, none can be read, or it was made with
    another base, adapter, data or seed.
    """
    paths = checkpoints(folder)
    if not paths:
        raise UserError(
            f"{folder} holds no checkpoint-STEP.pt: there is no checkpoint to resume from"
        )
    while True:
        path = paths.pop()
        try:
            state = read_checkpoint(path)
            saved = state["fingerprints"]
            keys = sorted(saved.keys() | fingerprints.keys())
            changed = [key for key in keys if saved.get(key) != fingerprints.get(key)]
            if not changed:
                checked(path, check, state)
            break
        except UserError as error:
            if not paths:
                raise UserError(
                    f"{error}; there is no other: start again with another --out, "
                    "or remove it and begin again with --resume"
                ) from None
            tqdm.write(f"{error}; the one before it is tried, {paths[-1].name}")
    if changed:
        raise UserError(
            f"{path} was made with another {', '.join(changed)}; "
            "resume with what it was started with, or start a new run"
        )
    tqdm.write(f"continuing from {path}")
    return state


def checked(path: Path, check: Callable[[dict], None], state: dict) -> None:
    """check(state), whose UserErrors name the file."""
    try:
        check(state)
        if path.name != name_of(state.get("step")):
            raise UserError(f"the state is of step {state.get('step')!r:.50}, by its name another")
    except UserError as error:
        raise UserError(f"{path} does not fit this run: {error}") from None


def read_checkpoint(path: Path) -> dict:
    """The state in one file. Raises UserError when it cannot be read."""
    if not is_zip(path):
        raise UserError(f"{path} cannot be read as a checkpoint: it is no zip, which torch writes")
    check_pickle(path)
    try:
        with zipfile.ZipFile(path) as file:  # torch writes checksums and does not verify them
            if damaged := file.testzip():
                raise OSError(f"{damaged} is damaged")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a broken file
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{path} cannot be read as a checkpoint: {type(error).__name__}: {reason:.200}"
        ) from None
    facts = state.get("fingerprints") if isinstance(state, dict) else None
    if not isinstance(facts, dict) or not all(isinstance(key, str) for key in facts):
        raise UserError(f"{path} is not a checkpoint of this program")
    return state
