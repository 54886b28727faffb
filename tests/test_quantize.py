"""int8 and nf4 weights: close to what they stand for, frozen, and every adapter on top."""

import pytest
import torch
from families import config_of

from adapters import attach
from model.load import family_and_config, skeleton
from model.quantize import STORED_AS, quantize_skeleton, quantized

HOW = list(STORED_AS)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("family", ["llama", "bloom", "opt", "gptj"])
def test_a_model_without_memory(family, how):
    """Shapes and bytes of a quantised model, an adapter on it, forward and backward: all without values."""
    module, config = family_and_config(config_of(family), "test")
    model = skeleton(module, config)
    weights = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    quantize_skeleton(model, how)
    assert sum(one.in_features * one.out_features for one in quantized(model).values()) == weights
    stored = sum(b.numel() * b.element_size() for b in model.buffers())
    assert stored / weights < (1.2 if "int8" in how else 0.6)  # tiny rows: a float32 scale for 32 weights
    model.requires_grad_(False)
    attach(model, "lora")
    for site in quantized(model).values():
        x = torch.zeros(2, 5, site.in_features, device="meta", requires_grad=True)
        site(x).sum().backward()
        assert x.grad.is_meta
        assert x.grad.shape == x.shape
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters() if p.requires_grad)
