"""The loss of a distilled adapter: KL(teacher || student) and its gradient, by hand."""

import pytest
import torch
from methods import attach_small, randomise
from training_runs import examples

from adapters import attach, named_parameters, use
from data.batches import micro_batches
from model import load_model
from train.measure import mean_loss
from train.pipeline import accumulate
from train.teacher import Teacher

TEACHERS = {  # what changes its hidden states, where its labels stand, its head, and its dropout
    "parallel": {},
    "prompt": {},
    "lora on the head": {},
    "lora": {"dropout": 0.5},
}


def log_softmax(model, row, entries) -> torch.Tensor:
    """Of the tokens that predict a label [l, V]."""
    use(model, entries)
    logits = model(torch.tensor([row.ids]))[0, :-1]
    return logits[torch.tensor(row.weights[1:]) != 0].log_softmax(dim=-1)


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("packing", [True, False])
def test_loss_and_gradient(folder, name, packing):
    model, rows = load_model(str(folder), torch.float32), examples(6)
    attach_small(model, name, as_name="teacher", **TEACHERS[name])
    attach(model, "lora", name="student", r=2, dropout=0.0, sites=["q", "embed", "head"])
    randomise(model)
    expected = torch.zeros(())
    for row in rows:
        with torch.no_grad():
            wanted = log_softmax(model.eval(), row, ["teacher"])
        given = log_softmax(model, row, ["student"])
        weights = torch.tensor([weight for weight in row.weights[1:] if weight])
        expected = expected + (weights * (wanted.exp() * (wanted - given)).sum(dim=-1)).sum()
    expected.backward()
    gradients = {n: p.grad.clone() for n, p in named_parameters(model).items()}
    model.zero_grad()

    teacher = Teacher(model, "teacher")
    use(model, ["student"], train=["student"])
    batches = dict(enumerate(micro_batches(rows, 4)))
    losses, _ = accumulate(model.train(), batches, 1.0, 0, packing, teacher)
    assert sum(losses).item() == pytest.approx(expected.item(), rel=1e-4)
    for path, parameter in named_parameters(model).items():
        torch.testing.assert_close(parameter.grad, gradients[path], rtol=1e-3, atol=1e-5)
    weight = sum(sum(row.weights[1:]) for row in rows)
    found = mean_loss(model, rows, 4, 0, packing=packing, teacher=teacher)
    assert found == pytest.approx(expected.item() / weight, rel=1e-4)
    assert model.adapters_on == (["student"], ["student"])
