"""A run's curves where others look at them: TensorBoard or Weights & Biases. Both are optional packages; log.jsonl holds the same and more."""

import importlib
import os
import secrets
from pathlib import Path

from files.errors import UserError, unknown
from files.writing import write_text


class Tracker:
    """Takes the entries of log.jsonl as they come, and the accuracies at the end. This one keeps nothing."""

    def __init__(self, folder: Path, settings: dict):
        self.folder = folder

    def write(self, entry: dict) -> None:
        """The numbers of one step: loss, learning_rate, gradient_norm, validation_loss, tokens_per_second ..."""

    def finish(self, step: int, accuracies: dict[str, float]) -> None:
        """The accuracy of each test set after `step` steps, if it was measured; nothing follows."""


class TensorBoard(Tracker):
    """Event files in FOLDER/tensorboard. What a resumed run repeats takes the place of what was there from that step on."""

    writer = None

    def write(self, entry: dict) -> None:
        from torch.utils.tensorboard import SummaryWriter

        if self.writer is None:
            self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=entry["step"])
        for name, value in numbers(entry).items():
            self.writer.add_scalar(f"train/{name}", value, entry["step"])
        self.writer.flush()  # so that a kill loses no step that a checkpoint has

    def finish(self, step: int, accuracies: dict[str, float]) -> None:
        if self.writer is None:  # resumed behind its last step
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)
        for name, accuracy in accuracies.items():
            self.writer.add_scalar(f"accuracy/{name}", accuracy, step)
        self.writer.close()


class WandB(Tracker):
    """A run of Weights & Biases whose id stays in the folder, so that a resumed run is the same one. WANDB_MODE, WANDB_PROJECT ... are the user's."""

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
            said = str(error).strip().partition("\n")[0]
            raise UserError(
                f"wandb does not start: {said:.200}; WANDB_MODE=offline keeps the curves in {folder}"
            ) from None
        self.run.define_metric(
            "*", step_metric="step"
        )  # a resumed run repeats some steps, which wandb's own counter forbids

    def write(self, entry: dict) -> None:
        self.run.log(numbers(entry) | {"step": entry["step"]})

    def finish(self, step: int, accuracies: dict[str, float]) -> None:
        self.run.log(
            {f"accuracy/{name}": accuracy for name, accuracy in accuracies.items()} | {"step": step}
        )
        self.run.finish()


TRACKERS = {"": Tracker, "tensorboard": TensorBoard, "wandb": WandB}


def numbers(entry: dict) -> dict[str, float]:
    """What of an entry can be drawn."""
    return {
        name: float(value) for name, value in entry.items() if name != "step" and value is not None
    }


def check_tracker(name: str) -> None:
    """Raise UserError for a tracker that is unknown or whose package is missing: before a model is loaded."""
    if name not in TRACKERS:
        raise unknown("train.tracker", name, [one for one in TRACKERS if one])
    try:
        if name:
            importlib.import_module({"tensorboard": "torch.utils.tensorboard"}.get(name, name))
    except ModuleNotFoundError:
        raise UserError(
            f"train.tracker = {name} needs a package that is not there: pip install {name}"
        ) from None
