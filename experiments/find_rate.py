"""A learning rate from short runs: each with another one, compared on held-out training rows.

    settings, trials = find_rate(settings)       python run.py --adapter hira --find-rate

Test problems have no part in it. A short run's best rate is often higher than a long run's.
"""

import signal
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from adapters.in_use import named_buffers, rates
from data.batches import Example
from experiments.prepare import Prepared, prepare
from experiments.rows import hold_out
from files.errors import UserError
from train.loop import NotFinite, train
from train.parallel import SINGLE, Processes
from train.settings import Settings

FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of train.learning_rate
STEPS = 60  # of each run, or all of the real one if it has fewer
ROWS = 64  # held out, at most a fifth of the training rows
FEW = 16  # held-out rows below which a warning says that they tell little


@dataclass(frozen=True)
class Trial:
    """A short run."""

    rate: float
    loss: float  # nats per token on the held-out rows; inf: it did not stay finite


def find_rate(
    settings: Settings, processes: Processes = SINGLE, factors: Sequence[float] = FACTORS
) -> tuple[Settings, list[Trial]]:
    """(the settings with the rate of the lowest loss, the trials in order of their rates).

    If the lowest loss is at an end of the rates, the next rate there is tried too, three times at
    most. Raises UserError where there are too few rows, or no loss is finite.
    """
    s, losses = settings.train, {}
    attempt = short_runs(prepare(settings, processes), processes)
    for factor in sorted(factors):
        rate = rounded(factor * s.learning_rate)
        losses[rate] = attempt(rate)
    for _ in range(3):
        ordered = sorted(losses)
        best = min(ordered, key=losses.get)
        if best not in (ordered[0], ordered[-1]) or losses[best] == inf:
            break
        rate = rounded(best * 3 if best == ordered[-1] else best / 3)
        losses[rate] = attempt(rate)
    best = min(losses, key=losses.get)
    if losses[best] == inf:
        raise UserError(f"no rate of {min(losses):.2g} to {max(losses):.2g} gives a finite loss")
    trials = [Trial(rate, losses[rate]) for rate in sorted(losses)]
    return replace(settings, train=replace(s, learning_rate=best)), trials


def short_runs(job: Prepared, processes: Processes = SINGLE) -> Callable[[float], float]:
    """A function: rate -> the loss on held-out rows after a short run from the start.

    The model keeps the adapter of the last run. Raises UserError where there are too few rows.
    """
    count = min(ROWS, len(job.examples) // 5)
    if not count:
        raise UserError(f"--find-rate needs 5 rows to train on, not {len(job.examples)}")
    if count < FEW:
        rows = f"{count} held-out row{'s' * (count > 1)}"
        warnings.warn(
            f"--find-rate compares the rates on {rows}, of {len(job.examples)}: its choice is "
            "little better than chance",
            stacklevel=2,
        )
    training, held_out, _ = hold_out(job.examples, count, job.settings.seed)
    tensors = [*job.trained.values(), *named_buffers(job.model).values()]
    start = [tensor.detach().clone() for tensor in tensors]

    def attempt(rate: float) -> float:
        with torch.no_grad():
            for tensor, value in zip(tensors, start, strict=True):
                tensor.copy_(value)
        return final_loss(job, rate, training, held_out, processes)

    return attempt


def final_loss(
    job: Prepared,
    rate: float,
    training: list[Example],
    held_out: list[Example],
    processes: Processes,
) -> float:
    """The loss on the held-out rows after a short run at this rate."""
    s = job.settings.train
    steps = min(s.max_steps or STEPS, STEPS)
    short = replace(
        s, learning_rate=rate, max_steps=steps, warmup_steps=min(s.warmup_steps, steps // 10),
        validate_every=steps, save_every=steps, best=False, patience=0,
    )  # fmt: skip
    entries: list[dict] = []
    with TemporaryDirectory() as folder:
        try:
            outcome = train(
                job.model,
                job.trained,
                training,
                short,
                folder=Path(folder),
                seed=job.settings.seed,
                pad_id=job.tokenizer.pad_id or 0,
                rates=rates(job.model),
                held_out=held_out,
                log=entries.append,
                processes=processes,
                teacher=job.teacher,
            )
        except NotFinite:
            return inf
    if outcome.signal:
        signal.raise_signal(outcome.signal)
    loss = entries[-1].get("validation_loss")
    return inf if loss is None else loss


def rounded(rate: float) -> float:
    """Two digits, so that a rate reads as it would be typed."""
    return float(f"{rate:.1e}")


def rate_lines(settings: Settings, trials: Sequence[Trial]) -> list[str]:
    """The table of the trials, with a mark at the rate that is taken."""
    taken = settings.train.learning_rate
    lines = [f"{'learning rate':>14}  loss on held-out training rows after a short run"]
    for trial in trials:
        mark = "  <- taken" if trial.rate == taken else ""
        loss = "not finite" if trial.loss == inf else f"{trial.loss:.4f}"
        lines.append(f"{trial.rate:14.1e}  {loss}{mark}")
    return lines
