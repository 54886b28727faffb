"""DoRA's lengths and PiSSA's start, against their formulas."""

import math

import pytest
import torch
from conftest import DEVICES, write_checkpoint
from methods import randomise

from adapters import attach
from adapters.methods.dora import DoRA
from adapters.starts import principal
from model import load_model


@pytest.fixture
def q(tiny):
    return tiny.blocks[0].self_attn.q_proj


X = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(5))


def test_dora_turns_rows_and_sets_their_length(tmp_path):
    model = load_model(str(write_checkpoint(tmp_path, attention_bias=True)))
    q = model.blocks[0].self_attn.q_proj
    attach(model, "dora", r=4, alpha=6, dropout=0.0)
    torch.testing.assert_close(
        q.adapters["default"].lora_magnitude_vector.detach(), q.weight.norm(dim=1)
    )
    randomise(model)
    adapter = q.adapters["default"]
    V = q.weight + 1.5 * adapter.lora_B @ adapter.lora_A
    expected = (
        X @ (adapter.lora_magnitude_vector[:, None] * V / V.norm(dim=1, keepdim=True)).T + q.bias
    )
    torch.testing.assert_close(q(X), expected)
    constant = (V / V.norm(dim=1, keepdim=True).detach()) * adapter.lora_magnitude_vector[
        :, None
    ]  # section 4.3: the norm has no gradient
    wanted = torch.autograd.grad(
        (X @ constant.T + q.bias).square().sum(), [adapter.lora_A, adapter.lora_magnitude_vector]
    )
    given = torch.autograd.grad(
        q(X).square().sum(), [adapter.lora_A, adapter.lora_magnitude_vector]
    )
    for one, other in zip(given, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_dora_keeps_its_norm_until_a_weight_changes(tmp_path, monkeypatch, quantize):
    """Reading the whole weight again for each token took 27 ms of an H100."""
    model = load_model(str(write_checkpoint(tmp_path / "tiny")), quantize=quantize)
    q = model.blocks[0].self_attn.q_proj
    attach(model, "dora", r=4, sites=["q"], layers=[0])
    adapter, made, norm = q.adapters["default"], [], DoRA.norm
    monkeypatch.setattr(DoRA, "norm", lambda self, w: made.append(1) or norm(self, w))

    def counted() -> int:
        before = len(made)
        ratio = adapter.lora_magnitude_vector / norm(adapter, q.weight)
        plain = q(X) - (q(X) - q(X))  # two more passes
        expected = ratio * (
            use_base(q, X) + adapter.scale * X @ adapter.lora_A.T @ adapter.lora_B.T
        )
        torch.testing.assert_close(plain, expected, rtol=1e-4, atol=1e-4)
        return len(made) - before

    assert (counted(), counted()) == (1, 0)
    with torch.no_grad():
        adapter.lora_B.add_(1.0)
    assert (counted(), counted()) == (1, 0)
    adapter.lora_A.data = adapter.lora_A.data + 1.0
    assert (counted(), counted()) == (1, 0)
    if quantize is None:
        q.weight.data = 2 * q.weight.data
    else:
        q.scale *= 2
    assert (counted(), counted()) == (1, 0)
    with torch.inference_mode():
        q(X)
    with torch.no_grad():
        adapter.lora_B.mul_(2.0)
    with torch.inference_mode():
        q(X)
    q(X).sum().backward()  # what inference mode made is not used where there are gradients
    assert adapter.lora_A.grad is not None


def use_base(q, x):
    """What the site computes without its adapters."""
    active, q.active = q.active, ()
    y = q(x)
    q.active = active
    return y


def test_pissa_starts_at_the_principal_singular_values(tiny, q):
    attach(tiny, "pissa", r=4, alpha=6)
    adapter = q.adapters["default"]
    singular = torch.linalg.svdvals(q.weight)
    start = 1.5 * adapter.lora_B @ adapter.lora_A
    torch.testing.assert_close(torch.linalg.svdvals(start)[:4], singular[:4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        torch.linalg.svdvals(q.weight - start)[0], singular[4], rtol=1e-4, atol=1e-4
    )
    randomise(tiny)
    torch.testing.assert_close(
        q(X),
        X @ (q.weight - start.detach() + 1.5 * adapter.lora_B @ adapter.lora_A).T,
        rtol=1e-4,
        atol=1e-4,
    )
    A, B = adapter.factors()
    assert A.shape == (8, 32)
    torch.testing.assert_close(q(X), X @ (q.weight + B @ A).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_pissa_of_a_large_weight_is_found_by_a_randomised_method(device):
    weight = torch.randn(1100, 1050) + 30 * torch.randn(1100, 3) @ torch.randn(3, 1050) / math.sqrt(
        1000
    )
    state = torch.get_rng_state()
    of_device = torch.cuda.get_rng_state() if device == "cuda" else state
    B, A = principal(weight.to(device), 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert device == "cpu" or torch.equal(torch.cuda.get_rng_state(), of_device)
    torch.testing.assert_close(
        torch.linalg.svdvals(B @ A)[:3], torch.linalg.svdvals(weight)[:3], rtol=1e-3, atol=1e-2
    )
