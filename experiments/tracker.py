"""A run's curves in TensorBoard or Weights & Biases, both optional packages. log.jsonl holds the
same and more."""

import importlib
import os
import secrets
from pathlib import Path

from files.errors import UserError, unknown
from files.writing import write_text


class Tracker:
    """Receives the entries of log.jsonl as they come, and the accuracies at the end; keeps none."""

    def __init__(self, folder: Path, settings: dict):
        self.folder = folder

    def write(self, entry: dict) -> None:
        """One step: loss, learning_rate, gradient_norm, validation_loss, tokens_per_second ..."""

    def finish(self, step: int, accuracies: dict[str, float]) -> None:
        """The accuracy of each test set after `step` steps, where measured. The last call."""


class TensorBoard(Tracker):
    """Event files in FOLDER/tensorboard. Steps that a resumed run repeats replace those there."""

    writer = None

    def open(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)

    def write(self, entry: dict) -> None:
        if self.writer is None:
            self.open(entry["step"])
        for name, value in numbers(entry).items():
            self.writer.add_scalar(f"train/{name}", value, entry["step"])
        self.writer.flush()  # so that a kill loses no step that a checkpoint has

    def finish(self, step: int, accuracies: dict[str, float]) -> None:
        if self.writer is None:  # resumed after its last step
            self.open(step + 1)
        for name, accuracy in accuracies.items():
            self.writer.add_scalar(f"accuracy/{name}", accuracy, step)
        self.writer.close()


class WandB(Tracker):
    """A run of Weights & Biases. Its id is kept in the folder, so that a resumed run is the same
    one. WANDB_MODE, WANDB_PROJECT ... are the user's."""

    def __init__(self, folder: Path, settings: dict):
        import wandb

        kept = folder / "wandb-id.txt"
        if not kept.is_file():
            write_text(kept, secrets.token_hex(8) + "\n")
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "llm-adapters"),
                id=kept.read_text().strip(),
                resume="allow",
                name=folder.name,
                dir=str(folder),
                config=settings,
            )
        except wandb.Error as error:
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"wandb does not start: {reason:.200}; WANDB_MODE=offline keeps the curves in "
                f"{folder}"
            ) from None
        # A resumed run repeats some steps, which wandb's own counter forbids.
        self.run.define_metric("*", step_metric="step")

    def write(self, entry: dict) -> None:
        self.run.log(numbers(entry) | {"step": entry["step"]})

    def finish(self, step: int, accuracies: dict[str, float]) -> None:
        figures = {f"accuracy/{name}": accuracy for name, accuracy in accuracies.items()}
        self.run.log(figures | {"step": step})
        self.run.finish()


TRACKERS = {"": Tracker, "tensorboard": TensorBoard, "wandb": WandB}


def numbers(entry: dict) -> dict[str, float]:
    """The values of an entry that can be drawn."""
    return {name: float(v) for name, v in entry.items() if name != "step" and v is not None}


def check_tracker(name: str) -> None:
    """Raise UserError for an unknown tracker, and for one whose package is missing."""
    if name not in TRACKERS:
        raise unknown("train.tracker", name, [tracker for tracker in TRACKERS if tracker])
    try:
        if name:
            importlib.import_module({"tensorboard": "torch.utils.tensorboard"}.get(name, name))
    except ModuleNotFoundError:
        raise UserError(
            f"train.tracker = {name} needs a package that is not installed: pip install {name}"
        ) from None
