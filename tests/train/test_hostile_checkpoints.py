"""Checkpoints of a run that do not fit are not loaded."""

from copy import deepcopy

import pytest
import torch

from adapters import attach
from files.errors import UserError
from model import load_model
from train.checkpoint import State, checkpoints, load_checkpoint
from train.optim import LossScale, adamw
from train.settings import Train


# ---------------------------------------------------------------- checkpoints
@pytest.fixture(scope="module")
def run_state(tmp_path_factory):
    """(a state at step 2 of 3, the folder of its checkpoint, its content)."""
    torch.manual_seed(0)
    model = load_model("pocket-llama")
    attach(model, "lora", r=2, sites=["q"], layers="first 1")
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    state = State(model, parameters, adamw(parameters, Train(), {}), LossScale())
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    state.step = 2
    state.validated(1.0)
    folder = tmp_path_factory.mktemp("run")
    state.save(folder, {"data": "a"})
    return state, folder, load_checkpoint(folder, {"data": "a"})


def first(saved: dict) -> str:
    return next(iter(saved["parameters"]))


CHANGES = {
    "no step": lambda s: s.pop("step"),
    "step of another type": lambda s: s.update(step="2"),
    "step of a list": lambda s: s.update(step=[2]),
    "step below 0": lambda s: s.update(step=-1),
    "step of another file": lambda s: s.update(step=3),
    "step beyond the run": lambda s: s.update(step=4),
    "skipped": lambda s: s.update(skipped=None),
    "no parameters": lambda s: s.pop("parameters"),
    "a list of parameters": lambda s: s.update(parameters=[1]),
    "a parameter missing": lambda s: s["parameters"].pop(first(s)),
    "a parameter too many": lambda s: s["parameters"].update(x=torch.ones(1)),
    "a parameter of shape [1]": lambda s: s["parameters"].update({first(s): torch.ones(1)}),
    "a text for a parameter": lambda s: s["parameters"].update({first(s): "x"}),
    "NaN": lambda s: s["parameters"][first(s)].mul_(float("nan")),
    "no buffers": lambda s: s.pop("buffers"),
    "no scale": lambda s: s.pop("scale"),
    "scale 0": lambda s: s["scale"].update(scale=0.0),
    "scale NaN": lambda s: s["scale"].update(scale=float("nan")),
    "scale with less": lambda s: s["scale"].pop("calm"),
    "scale with more": lambda s: s["scale"].update(more=1),
    "no optimizer": lambda s: s.pop("optimizer"),
    "an empty optimizer": lambda s: s.update(optimizer={}),
    "no groups": lambda s: s["optimizer"].update(param_groups=[]),
    "maximize": lambda s: s["optimizer"]["param_groups"][0].update(maximize=True),
    "a group without betas": lambda s: s["optimizer"]["param_groups"][0].pop("betas"),
    "a moment of shape [1]": lambda s: s["optimizer"]["state"][0].update(exp_avg=torch.ones(1)),
    "a negative moment": lambda s: s["optimizer"]["state"][0]["exp_avg_sq"].fill_(-1.0),
    "no moment": lambda s: s["optimizer"]["state"][0].pop("exp_avg"),
    "a step of the optimizer": lambda s: s["optimizer"]["state"][0].update(step="x"),
    "more steps of the optimizer": lambda s: s["optimizer"]["state"][0]["step"].fill_(3.0),
    "no step of the optimizer": lambda s: s["optimizer"]["state"][0]["step"].fill_(0.0),
    "no moments at all": lambda s: s["optimizer"].update(state={}),
    "a parameter of the optimizer": lambda s: s["optimizer"]["state"].update({99: {}}),
    "best without weights": lambda s: s.update(best={"step": 1, "loss": 0.0}),
    "best of another type": lambda s: s.update(best=3),
    "best loss": lambda s: s["best"].update(loss=float("nan")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_checkpoint_that_does_not_fit_is_not_loaded(run_state, tmp_path, name):
    state, _, saved = run_state
    changed = deepcopy(saved)
    CHANGES[name](changed)
    torch.save(changed, tmp_path / "checkpoint-000002.pt")
    before = {key: p.detach().clone() for key, p in state.parameters.items()}
    with pytest.raises(UserError, match=r"does not fit this run: .*; there is no other") as error:
        state.load(tmp_path, {"data": "a"}, 3)
    assert len(str(error.value).splitlines()) == 1
    assert all(torch.equal(p, before[key]) for key, p in state.parameters.items())


def test_the_older_checkpoint_is_taken_where_the_newer_does_not_fit(run_state, tmp_path, capsys):
    state, _, saved = run_state
    torch.save(saved | {"step": 1}, tmp_path / "checkpoint-000001.pt")
    torch.save(saved | {"step": "2"}, tmp_path / "checkpoint-000002.pt")
    state.load(tmp_path, {"data": "a"}, 3)
    assert state.step == 1
    assert "checkpoint-000002.pt does not fit this run" in capsys.readouterr().out
    with pytest.raises(UserError, match="made with another data"):
        state.load(tmp_path, {"data": 3}, 3)
    assert len(checkpoints(tmp_path)) == 2
