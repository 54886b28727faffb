"""The optimizer, its learning-rate schedule, and the dynamic loss scale of float16."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw as functional_adamw

from files.errors import unknown
from train.settings import SCHEDULES, Train


class AdamW:
    """AdamW (Loshchilov & Hutter 2019) with one fused kernel for all parameters of a device.

    The steps, to the bit, and the state_dict of torch.optim.AdamW(fused=True), which imports
    torch's compiler: 1.3 s. groups: {"params": [...], "rate": factor of the learning rate}.
    """

    def __init__(
        self, groups: list[dict], lr: float, betas: tuple[float, float], weight_decay: float
    ):
        common = {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay, "eps": 1e-8}
        self.param_groups = [{**common, **group} for group in groups]
        self.state: dict[nn.Parameter, dict[str, Tensor]] = {}

    def state_of(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """The number of its steps and its moments, zeros at first."""
        if parameter not in self.state:
            self.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }
        return self.state[parameter]

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            states = [self.state_of(parameter) for parameter in parameters]
            first, second = group["betas"]
            functional_adamw(
                parameters,
                [laid_as(parameter, parameter.grad) for parameter in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                amsgrad=False,
                maximize=False,
                beta1=first,
                beta2=second,
                **{key: group[key] for key in ("lr", "weight_decay", "eps")},
            )

    def zero_grad(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def numbered(self) -> dict[int, nn.Parameter]:
        return dict(enumerate(p for group in self.param_groups for p in group["params"]))

    def state_dict(self) -> dict:
        """State by number of the parameter, as torch's optimizers have it."""
        number_of = {parameter: number for number, parameter in self.numbered().items()}
        groups = [
            group | {"params": [number_of[parameter] for parameter in group["params"]]}
            for group in self.param_groups
        ]
        state = {number_of[parameter]: state for parameter, state in self.state.items()}
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, saved: dict) -> None:
        """Continue from a state_dict, whose tensors may be on another device."""
        numbered, self.state = self.numbered(), {}
        for number, state in saved["state"].items():
            parameter = numbered[number]
            state = {
                key: tensor.to(parameter.device, torch.float32, copy=True)
                for key, tensor in state.items()
            }
            moments = {key: laid_as(parameter, state[key]) for key in ("exp_avg", "exp_avg_sq")}
            self.state[parameter] = state | moments
        for group, other in zip(self.param_groups, saved["param_groups"], strict=True):
            group |= other | {"params": group["params"]}


def laid_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """The tensor with the strides of the parameter: the fused kernel goes through memory."""
    if tensor.stride() == parameter.stride():
        return tensor
    return torch.empty_like(parameter).copy_(tensor)


def adamw(parameters: dict[str, nn.Parameter], s: Train, rates: dict[str, float]) -> AdamW:
    """AdamW with one group of parameters for each factor of the learning rate ("rate")."""
    by_rate: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        by_rate.setdefault(rates.get(name, 1.0), []).append(parameter)
    groups = [{"params": group, "rate": rate} for rate, group in by_rate.items()]
    return AdamW(groups, s.learning_rate, s.betas, s.weight_decay)


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
