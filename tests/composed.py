"""A model with several adapters."""

import pytest
import torch
from methods import IDS, randomise

from adapters import attach, use

THREE = torch.cat((IDS, IDS[:1].flip(1)))


@pytest.fixture
def several(any_tiny):
    """A model with bottlenecks a, b, c (c of a's shape), LoRAs l, m, prefixes p, q and a soft
    prompt s.
    """
    for name, preset, changes in (
        ("a", "parallel", {"size": 3}),
        ("b", "parallel", {"size": 4, "scale": 2.0}),
        ("c", "parallel", {"size": 3}),
        ("l", "lora", {"r": 2, "dropout": 0.0}),
        ("m", "adalora", {"init_r": 3, "target_r": 2}),
        ("p", "prefix", {"length": 3}),
        ("q", "prefix", {"length": 3}),
        ("s", "prompt", {"length": 2}),
    ):
        attach(any_tiny, preset, name=name, **changes)
    randomise(any_tiny, 0.1)
    return any_tiny


@torch.no_grad()
def out(model, *entries, ids=THREE):
    use(model, list(entries))
    return model(ids)
