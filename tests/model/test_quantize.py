"""int8 and nf4 weights: close to what they stand for, frozen, and every adapter on top."""

from itertools import pairwise
from statistics import NormalDist

import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICES
from quantised import noise, stored

from model.quantize.nf4 import LEVELS

SHAPES = [
    (96, 64),
    (3, 5),
    (33, 35),
    (1, 64),
    (70, 1),
    (300, 300),
]  # divided by 64 or not, odd, more than one group of blocks


# ---------------------------------------------------------------- one weight
def test_the_levels_are_quantiles_of_the_normal_distribution():
    """QLoRA, appendix E: 8 equal shares on one side and 9 on the other, 0 once, divided by the
    largest; the tails end at the mean of 1/32 and 1/30.
    """
    end, at = 1 - (1 / 32 + 1 / 30) / 2, NormalDist().inv_cdf
    right = [at(end + (0.5 - end) * i / 8) for i in range(8)]
    left = [-at(end + (0.5 - end) * i / 7) for i in range(7)]
    levels = sorted([*right, 0.0, *left])
    torch.testing.assert_close(
        torch.tensor(LEVELS), torch.tensor(levels) / max(levels), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_half_a_step_away_at_most(shape, dtype, device):
    weight = (noise(*shape) * torch.logspace(-3, 2, shape[0])[:, None]).to(
        dtype
    )  # rows of very different size
    weight[-1] = 0
    found = stored("int8", weight, device).dequantized(torch.float32).cpu()
    step = weight.float().abs().amax(dim=1, keepdim=True) / 127
    assert ((found - weight.float()).abs() <= step / 2 * (1 + 1e-5)).all()
    assert (found[-1] == 0).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_is_half_a_gap_away_at_most(shape, dtype, device):
    """... of its block's largest weight; and that itself is half a step of its group away at
    most.
    """
    weight = noise(*shape).to(dtype)
    weight[-1] = 0
    linear = stored("nf4", weight, device)
    found = linear.dequantized(torch.float32).cpu()
    blocks = F.pad(weight.float().flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    largest = blocks.abs().amax(dim=1)
    groups = F.pad(largest, (0, -len(largest) % 256)).view(-1, 256)
    least = groups.masked_fill(groups == 0, torch.inf).amin(dim=1)
    share = ((groups.amax(dim=1) / least).log() / 255 / 2).expm1().repeat_interleave(256)[
        : len(largest)
    ] + 1e-5  # half a step, as a share of the scale
    assert ((linear.scale().cpu() - largest).abs() <= share * largest)[largest > 0].all()
    gap = max(b - a for a, b in pairwise(LEVELS))
    bound = (
        ((gap / 2 * (1 + share) + share) * largest + 1e-6)
        .repeat_interleave(64)[: weight.numel()]
        .view(shape)
    )
    error = (found - weight.float()).abs()
    assert (error <= bound).all()
    assert (found[-1].abs() <= 1e-6).all() or len(weight) == 1
    if weight.numel() > 10_000:  # normal weights: what 16 levels leave, 9.2 % in the mean
        assert 0.08 < (error.norm() / weight.float().norm()).item() < 0.1


def test_bits_a_weight():
    def of(how: str) -> float:
        return (
            8
            * sum(
                buffer.numel() * buffer.element_size()
                for buffer in stored(how, noise(1024, 1024)).buffers()
            )
            / 2**20
        )

    assert of("int8") == 8 + 32 / 1024
    assert 4.128 < of("nf4") < 4.130


def test_one_large_weight_does_not_make_the_scales_of_its_group_coarse():
    weight = 0.02 * noise(256, 64)
    plain = stored("nf4", weight).dequantized(torch.float32)[1:]
    weight[0, 0] = 3.0
    beside = stored("nf4", weight).dequantized(torch.float32)[1:]
    errors = [((one - weight[1:]).norm() / weight[1:].norm()).item() for one in (plain, beside)]
    assert errors[1] < 1.01 * errors[0]


@pytest.mark.parametrize("how", ["int8", "llm-int8"])
@pytest.mark.parametrize("inner", [24, 40, 48, 344])
def test_inputs_that_16_does_not_divide(how, inner):
    """torch's product for few rows in bfloat16 reads past their end."""
    linear, x = stored(how, noise(32, inner)), noise(4, inner).bfloat16()
    found, expected = linear(x), F.linear(x, linear.dequantized(torch.bfloat16))
    assert (found - expected).float().norm() <= 0.02 * expected.float().norm()
