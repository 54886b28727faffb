"""What a checkpoint holds, compared with the run that it is to be loaded into.

A checkpoint may come from somebody else, or from a disk that failed: a field that is missing, a
tensor of another shape (which copy_ would spread over a weight) or a step that the run does not
have is an error before anything is changed.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from files.errors import UserError
from files.typed import from_table, typed
from train.optim import AdamW, LossScale

SPEED = {"foreach", "fused", "capturable", "differentiable"}  # options of torch.optim.AdamW
Tensors = Mapping[str, Tensor]


def check_state(
    saved: dict, parameters: Tensors, buffers: Tensors, optimizer: AdamW, total: int
) -> None:
    """Raise UserError unless `saved` is a state of a run of `total` steps with these tensors."""
    where = "the state"
    for field in ("step", "skipped", "skipped_in_a_row"):
        number = typed(saved.get(field), int, where, field)
        if not 0 <= number <= total:
            raise UserError(f"{where}: {field} = {number} in a run of {total} steps")
    check_weights(saved, parameters, buffers, where)
    table = typed(saved.get("scale"), dict, where, "scale")
    scale = from_table(LossScale, table, "the loss scale")
    in_range = scale.scale > 0 and scale.calm >= 0 and scale.patience > 0
    if not in_range or table.keys() != vars(scale).keys():
        raise UserError(f"the loss scale: {table} is incomplete or out of range")
    optimizer_state = typed(saved.get("optimizer"), dict, where, "optimizer")
    check_optimizer(optimizer_state, optimizer, saved["step"])
    if saved["step"] > saved["skipped"] and not optimizer_state["state"]:
        raise UserError(f"{where}: the optimizer has no moments after {saved['step']} steps")
    best = typed(saved.get("best"), dict | None, where, "best")
    if best is not None:
        where = "the best state"
        if not 0 <= typed(best.get("step"), int, where, "step") <= total:
            raise UserError(f"{where} is of a step that the run does not have")
        typed(best.get("loss"), float, where, "loss")
        check_weights(best, parameters, buffers, where)


def check_weights(saved: dict, parameters: Tensors, buffers: Tensors, where: str) -> None:
    """Raise UserError unless `saved` has these tensors, finite ones for the parameters."""
    for kind, expected in (("parameters", parameters), ("buffers", buffers)):
        tensors = typed(saved.get(kind), dict, where, kind)
        if tensors.keys() != expected.keys():
            other = sorted(map(str, tensors.keys() ^ expected.keys()))[0]
            raise UserError(f"{where}: {other:.200} is missing in its {kind}, or too many")
        for name, tensor in tensors.items():
            check_tensor(tensor, expected[name], f"{where}: {name:.200}")


def check_tensor(tensor, expected: Tensor, where: str) -> None:
    """Raise UserError unless the tensor has the shape and dtype expected, and is finite."""
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta:
        raise UserError(f"{where} is no tensor")
    if tensor.shape != expected.shape or tensor.dtype != expected.dtype:
        raise UserError(
            f"{where} is {list(tensor.shape)} in {tensor.dtype}, the run has "
            f"{list(expected.shape)} in {expected.dtype}"
        )
    if not tensor.isfinite().all():
        raise UserError(f"{where} holds NaN or infinite values")


def check_optimizer(saved: dict, optimizer: AdamW, last: int) -> None:
    """Raise UserError unless `saved` is a state_dict of this optimizer after step `last`."""
    where, ours = "the optimizer", optimizer.state_dict()["param_groups"]
    groups = typed(saved.get("param_groups"), list[dict], where, "param_groups")
    if len(groups) != len(ours):
        raise UserError(f"{where} has {len(groups)} groups of parameters, not {len(ours)}")
    for group, own in zip(groups, ours, strict=True):
        for key in own.keys() | group.keys():
            value, expected = group.get(key), own.get(key)
            same = type(value) is type(expected) and value == expected
            if key == "lr":  # of the step before
                same = is_number(value)
            elif key not in own:  # of torch.optim.AdamW
                same = value is None or value is False or (value is True and key in SPEED)
            if not same:
                raise UserError(f"{where}: {key!s:.50} is not what the run's settings make it")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for number, table in typed(saved.get("state"), dict, where, "state").items():
        if type(number) is not int or not 0 <= number < len(parameters):
            raise UserError(f"{where} has a state of a parameter that the run does not have")
        moments = typed(table, dict, where, "state")
        if moments.keys() != {"step", "exp_avg", "exp_avg_sq"}:
            raise UserError(f"{where} has no step, exp_avg and exp_avg_sq of parameter {number}")
        step = moments["step"]
        if not (isinstance(step, Tensor) and step.numel() == 1 and is_number(step.item())):
            raise UserError(f"{where}: the step of parameter {number} is no number")
        if not 0 < step.item() <= last:
            raise UserError(f"{where}: parameter {number} has {step.item():g} of {last} steps")
        for name in ("exp_avg", "exp_avg_sq"):
            check_tensor(moments[name], parameters[number], f"{where}: {name} of {number}")
        if (moments["exp_avg_sq"] < 0).any():
            raise UserError(f"{where}: exp_avg_sq of parameter {number} is negative")


def is_number(value) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= 0
