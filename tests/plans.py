"""Models without memory, and the plans of their steps."""

import pytest
import torch
from families import config_of

from adapters import attach
from model.config import family_and_config, skeleton
from model.load import put
from model.registry import REGISTRY
from run import main as run_main
from train.plan.dry_run import training_step
from train.settings import Train

ROWS, LENGTH = 3, 16
LAYERS = 4


@pytest.fixture(autouse=True)
def shallow(monkeypatch) -> None:
    """A plan takes as long as the model has layers: SmolLM2 has 4 here, in place of 30."""
    of_layers(LAYERS, monkeypatch, "smollm2-135m")


def of_layers(layers: int, monkeypatch, *names: str) -> None:
    """Let the models of these names have so many layers."""
    for name in names:
        config = REGISTRY[name].config
        field = "n_layer" if config["model_type"] in ("bloom", "gptj") else "num_hidden_layers"
        monkeypatch.setitem(config, field, layers)


def model_of(
    family: str,
    adapter: str = "lora",
    dtype: torch.dtype = torch.float32,
    memory: bool = False,
    **changes,
):
    """A tiny model with an adapter; memory=False: on the meta device."""
    module, config = family_and_config(config_of(family, **changes), "test")
    model = skeleton(module, config).to(dtype)
    model.dtype = dtype
    if memory:
        tied = model.tied
        for name, parameter in list(model.named_parameters()):
            put(model, name, torch.randn(parameter.shape, dtype=dtype) / 8)
        if tied:
            model.tie()
    attach(model, adapter)
    return model


def step_of(model, device: str = "cpu", share: float = 1.0, length: int = LENGTH, **changes):
    s = Train(**({"micro_batch_size": ROWS, "batch_size": 2 * ROWS} | changes))
    return training_step(model, s, length, share, device)


def peak(found) -> int:
    return found.phase.peak([0] * len(found.weights))[0]


def command(*words) -> int:
    return run_main([str(word) for word in words])
