"""Validation: rows that are never trained on choose the adapter."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from training_runs import S, examples, model_with, run, same, state

from adapters import named_parameters
from data.batches import collate
from experiments.rows import hold_out
from model import UserError
from train import loop
from train.checkpoint import load_checkpoint
from train.loss import summed_loss
from train.measure import mean_loss

V = replace(
    S, max_steps=12, validation_rows=4, validate_every=3, schedule="constant", learning_rate=0.05
)
HELD_OUT = examples(24)[20:]


def losses(monkeypatch, values):
    """mean_loss gives these, one after the other."""
    rest = list(values)
    monkeypatch.setattr(loop, "mean_loss", lambda *arguments: rest.pop(0))


# ---------------------------------------------------------------- what is validated
def test_rows_are_held_out_by_the_seed_and_never_trained_on():
    rows = [*examples(30), *examples(3)]  # three rows twice
    training, held_out, twins = hold_out(rows, 10, seed=1)
    assert len(held_out) == 10
    assert len(training) + 10 + twins == 33
    assert not {tuple(row.ids) for row in training} & {tuple(row.ids) for row in held_out}
    assert hold_out(rows, 10, seed=1) == (training, held_out, twins)
    assert hold_out(rows, 10, seed=2)[1] != held_out
    assert hold_out(rows, 0, seed=1) == (rows, [], 0)
    assert (
        sum(hold_out(rows, 10, seed=seed)[2] for seed in range(5)) > 0
    )  # a twin is left out of both
    with pytest.raises(UserError, match="leaves no row of 33"):
        hold_out(rows, 40, seed=1)


def test_the_validation_loss_is_per_token_without_dropout(folder):
    model = model_with(folder, "lora", dropout=0.5)
    with torch.no_grad():
        for parameter in named_parameters(model).values():
            parameter.normal_(std=0.3)
    model.train()
    found = mean_loss(model, HELD_OUT, 3, 0)
    assert model.training
    model.eval()
    expected = sum(summed_loss(model, *collate([row], 0, "cpu")).item() for row in HELD_OUT) / sum(
        sum(row.weights[1:]) for row in HELD_OUT
    )
    assert found == pytest.approx(expected, rel=1e-5)


def test_without_validation_rows_nothing_changes_and_with_them_the_steps_stay_as_they_are(
    folder, tmp_path
):
    plain, validated = (
        model_with(folder, "lora", dropout=0.3),
        model_with(folder, "lora", dropout=0.3),
    )
    outcome, first = run(plain, tmp_path, replace(V, validation_rows=0, validate_every=0))
    assert (outcome.adapter_step, outcome.validation) == (12, {})
    _, second = run(validated, tmp_path, replace(V, best=False), held_out=HELD_OUT)
    assert same(state(plain), state(validated))
    assert [entry["step"] for entry in second if "validation_loss" in entry] == [3, 6, 9, 12]
    assert [entry["loss"] for entry in first] == [entry["loss"] for entry in second]


# ---------------------------------------------------------------- the best step
def test_the_best_steps_weights_are_loaded_in_the_end_and_nan_is_never_best(
    folder, tmp_path, monkeypatch
):
    at_six = model_with(folder)
    monkeypatch.setattr(loop, "mean_loss", lambda *arguments: 1.0)
    run(at_six, tmp_path, replace(V, max_steps=6), held_out=HELD_OUT)
    at_six = load_checkpoint(tmp_path, {"base model": "b"})["parameters"]

    model = model_with(folder)
    losses(monkeypatch, [2.0, 1.0, float("nan"), 1.0])
    outcome, entries = run(model, tmp_path, V, held_out=HELD_OUT)
    assert (outcome.step, outcome.adapter_step, outcome.validation) == (
        12,
        6,
        {"best_step": 6, "best_loss": 1.0},
    )
    assert all(
        torch.equal(parameter, at_six[name]) for name, parameter in named_parameters(model).items()
    )
    assert entries[8]["validation_loss"] is None
    last = load_checkpoint(
        tmp_path, {"base model": "b"}
    )  # the checkpoint itself holds the last step, and the best beside it
    assert not all(torch.equal(last["parameters"][name], tensor) for name, tensor in at_six.items())
    again = model_with(folder)
    outcome, _ = run(
        again, tmp_path, V, held_out=HELD_OUT, resume=True
    )  # killed after the last step
    assert outcome.adapter_step == 6
    assert same(state(again), state(model))

    losses(monkeypatch, [2.0, 1.0, float("nan"), 1.0])
    kept, _ = run(model_with(folder), tmp_path, replace(V, best=False), held_out=HELD_OUT)
    assert (kept.adapter_step, kept.validation["best_step"]) == (12, 6)
    losses(monkeypatch, [float("nan")] * 4)
    outcome, _ = run(model_with(folder), tmp_path, V, held_out=HELD_OUT)
    assert (outcome.adapter_step, outcome.validation) == (12, {})


def test_a_resumed_run_still_knows_the_best(folder, tmp_path, monkeypatch):
    losses(monkeypatch, [1.0, 2.0, 3.0, 4.0])
    whole = model_with(folder)
    run(whole, tmp_path, V, held_out=HELD_OUT)
    losses(monkeypatch, [1.0, 2.0])
    outcome, _ = run(
        model_with(folder),
        tmp_path,
        V,
        held_out=HELD_OUT,
        log=lambda entry: os.kill(os.getpid(), signal.SIGTERM) if entry["step"] == 7 else None,
    )
    assert (outcome.step, outcome.signal) == (7, signal.SIGTERM)
    losses(monkeypatch, [3.0, 4.0])
    rest = model_with(folder)
    outcome, _ = run(rest, tmp_path, V, held_out=HELD_OUT, resume=True)
    assert (outcome.adapter_step, outcome.validation["best_loss"]) == (3, 1.0)
    assert same(state(rest), state(whole))


def test_weights_that_are_not_finite_are_never_the_best(folder, tmp_path, monkeypatch):
    model = model_with(folder)

    def spoil(*arguments):  # attention on a CPU can hide it from the loss
        next(iter(named_parameters(model).values())).data.fill_(torch.nan)
        return 1.0

    monkeypatch.setattr(loop, "mean_loss", spoil)
    with pytest.raises(UserError, match="not finite after step 3"):
        run(model, tmp_path, V, held_out=HELD_OUT)


def test_patience_stops_the_run_also_when_it_was_interrupted(folder, tmp_path, monkeypatch):
    losses(monkeypatch, [2.0, 1.0, 1.5, 1.2, 0.1])
    s = replace(V, max_steps=30, patience=2, save_every=3)
    outcome, entries = run(model_with(folder), tmp_path, s, held_out=HELD_OUT)
    assert (outcome.step, outcome.adapter_step, len(entries)) == (12, 6, 12)
    outcome, entries = run(model_with(folder), tmp_path, s, held_out=HELD_OUT, resume=True)
    assert (outcome.step, outcome.adapter_step, len(entries)) == (12, 6, 0)


@pytest.mark.parametrize(
    "change", [{"train": {"patience": 2}}, {"train": {"validate_every": 5}}], ids=str
)
def test_settings_that_need_validation_rows_say_so(change):
    from train.settings import settings

    with pytest.raises(UserError, match=r"set train\.validation_rows"):
        settings(options=change)
