"""What some methods ask of the loop: penalties, schedules, rates, adapters below the one that is
trained.
"""

import os
import signal
from dataclasses import replace

import pytest
import torch
from training_runs import S, examples, run, same, state

from adapters import attach, named_parameters, use
from adapters.attach import adapters_named
from adapters.in_use import named_buffers, penalty, rates
from model import load_model
from train.loop import train


def adalora(folder):
    torch.manual_seed(0)
    model = load_model(str(folder))
    attach(model, "adalora", init_r=4, target_r=2, sites=["q", "v"], every=2, dropout=0.2)
    return model


def test_ranks_are_cut_and_a_run_that_was_stopped_between_cuts_ends_with_the_same_bits(
    folder, tmp_path
):
    s = replace(S, max_steps=16)
    whole = adalora(folder)
    (tmp_path / "whole").mkdir()
    run(whole, tmp_path / "whole", s)
    ranks = [int(adapter.kept.sum()) for adapter in adapters_named(whole, "default").values()]
    assert sum(ranks) == 2 * 6
    assert all(
        ((adapter.lora_E != 0) == adapter.kept).all()
        for adapter in adapters_named(whole, "default").values()
    )

    half = adalora(folder)
    outcome, _ = run(
        half,
        tmp_path,
        s,
        log=lambda entry: os.kill(os.getpid(), signal.SIGTERM) if entry["step"] == 7 else None,
    )
    assert outcome.step == 7
    other = adalora(folder)
    run(other, tmp_path, s, resume=True)
    assert same(state(other), state(whole))
    assert same(named_buffers(other).values(), named_buffers(whole).values())


def test_the_penalty_is_part_of_the_gradient(folder, tmp_path):
    """With nothing to learn but the penalty, A and B become orthogonal."""
    model = adalora(folder)
    before = penalty(model).item()
    for adapter in adapters_named(model, "default").values():
        adapter.scale = 0.0
    run(model, tmp_path, replace(S, max_steps=60, schedule="constant", clip=100.0))
    assert penalty(model).item() < 0.5 * before


def test_a_frozen_adapter_below_is_neither_cut_nor_penalised(folder, tmp_path):
    model = adalora(folder)
    attach(model, "parallel", name="above", size=3)
    use(model, ["default", "above"], train=["above"])
    below = {
        leaf: tensor.clone()
        for one in adapters_named(model, "default").values()
        for leaf, tensor in one.state_dict().items()
    }
    assert penalty(model) is None
    run(model, tmp_path, replace(S, max_steps=16))
    after = {
        leaf: tensor
        for one in adapters_named(model, "default").values()
        for leaf, tensor in one.state_dict().items()
    }
    assert all(torch.equal(after[leaf], tensor) for leaf, tensor in below.items())


def test_parts_learn_at_their_own_rates(folder, tmp_path):
    moved = {}
    for rate in (1.0, 0.01):
        torch.manual_seed(0)
        model = load_model(str(folder))
        attach(model, "lora+bitfit", lora={"r": 2}, bitfit={"rate": rate})
        start = {name: p.detach().clone() for name, p in named_parameters(model).items()}
        found = rates(model)
        train(
            model,
            named_parameters(model),
            examples(),
            replace(S, max_steps=1),
            seed=1,
            pad_id=0,
            folder=tmp_path,
            fingerprints={},
            rates=found,
        )
        moved[rate] = {
            kind: max(
                float((p - start[name]).abs().max())
                for name, p in named_parameters(model).items()
                if name.endswith(kind)
            )
            for kind in ("lora_B", "bias")
        }
    assert moved[0.01]["lora_B"] == moved[1.0]["lora_B"] > 0
    assert moved[0.01]["bias"] == pytest.approx(0.01 * moved[1.0]["bias"], rel=1e-3)
