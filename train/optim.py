"""The optimizer, its learning-rate schedule, and the dynamic loss scale of float16."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from files.errors import unknown
from train.settings import SCHEDULES, Train


def adamw(
    parameters: dict[str, nn.Parameter], s: Train, rates: dict[str, float]
) -> torch.optim.AdamW:
    """AdamW with one group of parameters for each factor of the learning rate ("rate")."""
    by_rate: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        by_rate.setdefault(rates.get(name, 1.0), []).append(parameter)
    groups = [{"params": group, "rate": rate} for rate, group in by_rate.items()]
    return torch.optim.AdamW(groups, lr=s.learning_rate, betas=s.betas, weight_decay=s.weight_decay)


def learning_rate(s: Train, step: int, total: int) -> float:
    """The learning rate of a step, counted from 0.

    Linear warm-up over `warmup_steps`, but at most half of the run; then linear or cosine decay to
    `final_learning_rate` x `learning_rate` at `total`, or constant. Raises UserError.
    """
    if s.schedule not in SCHEDULES:
        raise unknown("schedule", s.schedule, SCHEDULES)
    warmup = min(s.warmup_steps, total // 2)
    if step < warmup:
        return s.learning_rate * (step + 1) / warmup
    if s.schedule == "constant":
        return s.learning_rate
    done = (step - warmup) / max(1, total - warmup)
    left = 1 - done if s.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return s.learning_rate * (s.final_learning_rate + (1 - s.final_learning_rate) * left)


@dataclass
class LossScale:
    """A factor of the loss that keeps float16 gradients from vanishing (Micikevicius et al. 2018).

    Halved when a gradient overflows, doubled after `patience` steps without an overflow.
    """

    scale: float = 1.0
    calm: int = 0  # steps since the last overflow
    dynamic: bool = False
    patience: int = 2000

    def update(self, finite: bool) -> None:
        if not self.dynamic:
            return
        if not finite:
            self.scale, self.calm = max(self.scale / 2, 1.0), 0
        else:
            self.calm += 1
            if self.calm % self.patience == 0:
                self.scale *= 2
