"""`pretrain` draws its first weights from the seed of the command."""

import pytest
import torch
from torch import nn

from experiments import pretrain


class Reached(Exception):
    """The weights are about to be drawn."""


def test_the_seed_of_the_command_draws_the_weights(tmp_path, monkeypatch):
    def initialise(model, std, seed):
        raise Reached(std, seed)

    monkeypatch.setattr(pretrain, "initialise", initialise)
    order = pretrain.Order("pocket", "llama", seed=5, max_steps=1)
    with pytest.raises(Reached) as reached:
        pretrain.pretrain(order, tmp_path / "new")
    assert reached.value.args == (0.06, 5)


def test_weights_are_normal_and_repeat_with_their_seed():
    def weights(seed: int) -> torch.Tensor:
        linear = nn.Linear(100, 100)
        pretrain.initialise(linear, 0.1, seed)
        assert not linear.bias.any()
        return linear.weight.detach()

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))
    assert weights(3).std().item() == pytest.approx(0.1, rel=0.05)
