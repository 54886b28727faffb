"""Learning-rate schedule and the dynamic loss scale of float16."""

import math
from dataclasses import dataclass

from files.errors import unknown
from train.settings import Train


def learning_rate(s: Train, step: int, total: int) -> float:
    """Linear warm-up over `warmup_steps`, then linear or cosine decay to final_learning_rate at `total`, or constant."""
    if s.schedule not in ("linear", "cosine", "constant"):
        raise unknown("schedule", s.schedule, ["linear", "cosine", "constant"])
    warmup = min(s.warmup_steps, total // 2)  # a short run still reaches its full rate
    if step < warmup:
        return s.learning_rate * (step + 1) / warmup
    if s.schedule == "constant":
        return s.learning_rate
    done = (step - warmup) / max(1, total - warmup)
    left = 1 - done if s.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return s.learning_rate * (s.final_learning_rate + (1 - s.final_learning_rate) * left)


@dataclass
class LossScale:
    """Multiplies the loss so that float16 gradients do not vanish (Micikevicius et al. 2018): halved on overflow, doubled after calm."""

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
