"""Products with int8 and nf4 weights: those of the weights that they stand for."""

import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICES
from quantised import HOW, noise, stored

from model.quantize import int8
from model.quantize.nf4 import LEVELS, nf4_blocks


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("rows", [(1,), (2, 3), (3, 40)])
def test_the_product_is_that_of_the_weight_it_stands_for(how, dtype, rows, device):
    """Forward and gradient of x, with and without the fast forms for few rows."""
    linear = stored(how, noise(48, 80) / 9, device)
    weight = linear.dequantized(torch.float32)
    x = noise(*rows, 80, seed=1).to(device, dtype).requires_grad_()
    y = linear(x)
    assert y.dtype == dtype
    grad = noise(*rows, 48, seed=2).to(device, dtype)
    y.backward(grad)
    expected = F.linear(x.detach().float(), weight)
    rounding = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.005}[dtype] + (
        0.03 if how == "llm-int8" else 0
    )
    assert ((y.float() - expected).abs().max() / expected.std(correction=0)).item() < rounding
    exact = grad.float() @ weight
    assert ((x.grad.float() - exact).abs().max() / exact.std(correction=0)).item() < {
        torch.float32: 1e-5,
        torch.bfloat16: 0.03,
        torch.float16: 0.005,
    }[dtype]


@pytest.mark.parametrize("how", HOW)
def test_nothing_is_kept_for_the_backward_pass(how):
    linear, kept = stored(how, noise(64, 128)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        linear(noise(2, 7, 128).requires_grad_()).sum()
    assert not kept


@pytest.mark.parametrize("rows", [1, 2, int8.FEW])
def test_the_packed_product_is_the_plain_one(rows, monkeypatch):
    linear = stored("int8", noise(96, 160))
    x = noise(rows, 160, seed=1).bfloat16()
    assert int8.packs(x)
    assert not int8.packs(noise(int8.FEW + 1, 160).bfloat16())
    assert not int8.packs(x.float())
    fast = linear.multiply(x).float()
    monkeypatch.setattr(int8, "packs", lambda x: False)
    plain = linear.multiply(x).float()
    assert (fast - plain).abs().max() / plain.std() < 0.02


def test_sums_of_codes_above_float16_stay_finite():
    """512 codes of 127 times 8 are eight times the largest float16; the product is not."""
    linear = stored("int8", torch.full((32, 512), 0.1))
    x = torch.full((40, 512), 8.0, dtype=torch.float16, requires_grad=True)
    y = linear(x)
    torch.testing.assert_close(y.float(), torch.full((40, 32), 409.6), rtol=2e-3, atol=0)
    y.backward(torch.full_like(y, 64.0))
    torch.testing.assert_close(x.grad.float(), torch.full((40, 512), 204.8), rtol=2e-3, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("rows", "inner", "out"), [(1, 3, 5), (7, 64, 96), (40, 33, 17)])
def test_integer_products_are_exact(rows, inner, out, device):
    a, b = (
        torch.randint(
            -127, 128, (n, inner), dtype=torch.int8, generator=torch.Generator().manual_seed(n)
        )
        for n in (rows, out)
    )
    assert torch.equal(
        int8.integer_product(a.to(device), b.to(device)).cpu().double(), a.double() @ b.double().T
    )


def test_outliers_keep_their_precision_and_change_no_other_row():
    linear = stored("llm-int8", noise(64, 256))
    x = noise(5, 256, seed=1).clamp(-4, 4)
    alone = linear.multiply(x)
    x[2, 17], x[2, 200] = 300.0, -90.0
    y, exact = linear.multiply(x), F.linear(x, linear.dequantized(torch.float32))
    others = [0, 1, 3, 4]
    assert torch.equal(y[others], alone[others])
    assert (
        (y - exact)[2].std()
        / (alone - F.linear(x, linear.dequantized(torch.float32)))[others].std()
    ).item() < 1.5  # as exact as without
    near = int8.OUTLIER - 0.1
    x[2, 17], x[2, 200] = near, -near  # below the threshold: part of the row's scale
    assert ((linear.multiply(x) - F.linear(x, linear.dequantized(torch.float32)))[2]).std() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_outliers_are_multiplied_without_waiting_for_a_card(dtype):
    """Nothing in it has a shape that depends on values: it can be computed on "meta"."""
    linear = stored("llm-int8", noise(64, 256))
    outliers = torch.zeros(5, 256, dtype=dtype)
    outliers[2, 17], outliers[2, 200], outliers[4, 17] = 300.0, -90.0, 7.0
    found, some = linear.times_all(outliers), linear.times_some(outliers)
    torch.testing.assert_close(found.float(), some, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)
    assert some[2].abs().max() > 1
    assert not some[[0, 1, 3]].any()
    assert linear.to("meta").times_all(outliers.to("meta")).shape == some.shape


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_four_levels_at_once_are_those_one_by_one(device, dtype):
    linear = stored("nf4", noise(96, 128), device)
    levels = torch.tensor(LEVELS, device=device).to(dtype)
    codes = torch.stack((linear.codes >> 4, linear.codes & 15), dim=1).int()
    expected = levels[codes].view(-1, 64) * linear.scale().to(dtype)[:, None]
    assert torch.equal(nf4_blocks(linear.codes, linear.scale(), dtype), expected)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("device", DEVICES[1:])
def test_a_card_stores_and_makes_the_bits_of_a_cpu(how, device):
    here, there = (stored(how, noise(300, 300), place) for place in ("cpu", device))
    for leaf in here.layout():
        assert torch.equal(getattr(there, leaf).cpu(), getattr(here, leaf)), leaf
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(there.dequantized(dtype).cpu(), here.dequantized(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 33), (2, 40, 33)])
def test_sums_are_scaled_in_float32(dtype, shape):
    y, scale = (100 * noise(*shape)).to(dtype), noise(33).abs() / 7
    expected = (y.float() * (scale / int8.unit_of(dtype))).to(dtype)
    assert torch.equal(int8.scaled(y, scale), expected)
