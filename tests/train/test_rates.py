"""LoRA+ and the schedules, as the optimizer sees them."""

from dataclasses import replace

import pytest
import torch
from training_runs import S, examples, model_with, run

from adapters import attach, named_parameters
from adapters.in_use import rates
from data.batches import batch_of, epoch_order, micro_batches
from model import load_model
from train.loop import train
from train.loss import summed_loss
from train.optim import AdamW


# ---------------------------------------------------------------- LoRA+
@pytest.mark.parametrize("kind", ["lora", "dora", "pissa"])
def test_lora_plus_is_adamw_with_two_groups_made_by_hand(folder, tmp_path, kind):
    """Hayou et al. 2024: B learns 16 times as fast as A."""
    s = replace(
        S,
        max_steps=3,
        schedule="constant",
        warmup_steps=0,
        batch_size=6,
        micro_batch_size=6,
        clip=1e9,
    )

    def made():
        torch.manual_seed(0)
        model = load_model(str(folder))
        attach(model, kind, r=2, dropout=0.0, b_rate=16.0)
        return model

    ours, theirs = made(), made()
    found = rates(ours)
    assert {name.rpartition(".")[2]: rate for name, rate in found.items()} == {
        "lora_A": 1.0,
        "lora_B": 16.0,
        **({"lora_magnitude_vector": 1.0} if kind == "dora" else {}),
    }
    train(
        ours,
        named_parameters(ours),
        examples(6),
        s,
        seed=1,
        pad_id=0,
        folder=tmp_path,
        fingerprints={},
        rates=found,
    )

    named = named_parameters(theirs)
    groups = [
        {"params": [p for name, p in named.items() if "lora_B" not in name], "lr": s.learning_rate},
        {
            "params": [p for name, p in named.items() if "lora_B" in name],
            "lr": 16 * s.learning_rate,
        },
    ]
    optimizer = torch.optim.AdamW(groups, betas=s.betas, weight_decay=s.weight_decay, fused=True)
    rows = examples(6)
    for epoch in range(3):
        (order,) = epoch_order([len(row) for row in rows], 6, 1, epoch)
        (batch,) = micro_batches([rows[row] for row in order], 6)
        (
            summed_loss(theirs, *batch_of(batch, 0, "cpu", packing=True))
            / sum(sum(row.weights[1:]) for row in rows)
        ).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in named_parameters(ours).items():
        assert torch.equal(parameter, named[name])


# ---------------------------------------------------------------- schedules
@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_every_schedule_reaches_the_optimizer(folder, tmp_path, monkeypatch, schedule):
    used = []
    true_step = AdamW.step
    monkeypatch.setattr(
        AdamW,
        "step",
        lambda self: used.append([group["lr"] for group in self.param_groups]) or true_step(self),
    )
    run(
        model_with(folder),
        tmp_path,
        replace(
            S,
            max_steps=10,
            learning_rate=1.0e-3,
            warmup_steps=2,
            schedule=schedule,
            final_learning_rate=0.1,
        ),
    )
    assert all(len(rates) == 1 for rates in used)
    expected = {
        "linear": [0.5, 1, 1, 0.8875, 0.775, 0.6625, 0.55, 0.4375, 0.325, 0.2125],
        "constant": [0.5] + 9 * [1.0],
        "cosine": [0.5, 1, 1, 0.96574, 0.86820, 0.72221, 0.55, 0.37779, 0.23180, 0.13426],
    }[schedule]
    assert [1000 * rate[0] for rate in used] == pytest.approx(expected, rel=1e-3)
