"""Fast forms beside the plain ones: outputs and gradients are the same, in less memory."""

import sys
import unittest.mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters import attach, named_parameters
from adapters.config import resolve
from data.batches import Example, collate
from model import fast, kernels, parts
from model.sites import RMSNorm
from train import loss, loss_gradient
from train.loss import summed_loss

KINDS = ("causal", "more keys", "holes", "window", "ALiBi")
B, T, D, C = 2, 70, 8, 16  # T: more than one block


def plain_attention(q, k, v, mask, float32=False) -> Tensor:
    """What `block_attention` computes, [B, T, H*D]."""
    return parts.attention_plain(q, k, v, mask, float32).transpose(1, 2).flatten(2)


def mask_of(kind: str, H: int) -> tuple[int, Tensor | None]:
    """(keys, mask)."""
    S = T + 5 if kind == "more keys" else T
    looks = torch.ones(B, 1, T, S, dtype=torch.bool).tril(S - T)
    if kind == "holes":
        looks[1, :, :, 3:9] = False
        looks |= torch.eye(T, dtype=torch.bool)
    if kind == "window":
        looks &= ~torch.ones(T, S, dtype=torch.bool).tril(-10)
    if kind == "ALiBi":
        distance = torch.arange(S) - torch.arange(T)[:, None]
        slopes = torch.tensor([0.5**i for i in range(H)])
        return S, (slopes[:, None, None] * distance).masked_fill(~looks, -torch.inf)
    return S, None if kind in ("causal", "more keys") else looks


def results(compute, inputs, gradient=None) -> list[Tensor]:
    """The output and the gradients of the inputs that have one."""
    inputs = [t.detach().requires_grad_(t.is_floating_point()) for t in inputs]
    out = compute(*inputs)
    out.backward(torch.ones_like(out) if gradient is None else gradient.to(out.dtype))
    return [out.detach(), *(t.grad for t in inputs if t.grad is not None)]


def no_further(found, plain, exact) -> None:
    """`found` is about as near to `exact` as `plain` is; a block's part is rounded by itself."""
    for a, b, c in zip(found, plain, exact, strict=True):
        assert (a.float() - c).norm() <= 1.3 * (b.float() - c).norm() + 1e-6


@pytest.mark.parametrize("kept", [256, 0])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("H", "K"), [(4, 4), (6, 2)])
def test_attention_by_blocks(monkeypatch, H, K, kind, kept):
    monkeypatch.setattr(fast, "KEPT", kept)
    torch.manual_seed(0)
    K = H if kind == "ALiBi" else K  # BLOOM's
    S, mask = mask_of(kind, H)
    inputs = torch.randn(B, H, T, D), torch.randn(B, K, S, D), torch.randn(B, K, S, D)
    gradient = torch.randn(B, T, H * D)

    def by(form, dtype, float32=False):
        here = None if mask is None or mask.dtype == torch.bool else mask.to(dtype)
        return results(
            lambda q, k, v: form(q, k, v, mask if here is None else here, float32),
            [t.to(dtype) for t in inputs],
            gradient,
        )

    exact = by(plain_attention, torch.float32)
    for a, b in zip(by(fast.block_attention, torch.float32), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    bf16 = [t.bfloat16() for t in inputs]
    plain = [t.float() for t in bf16]
    exact = results(lambda q, k, v: plain_attention(q, k, v, mask), plain, gradient)
    for float32 in (False, True):
        forms = (
            results(lambda *qkv, form=form, f=float32: form(*qkv, mask, f), bf16, gradient)
            for form in (fast.block_attention, plain_attention)
        )
        if kind != "ALiBi":  # whose mask has the dtype of the scores
            no_further(*forms, exact)


@pytest.fixture
def nan_in_new_memory():
    """New memory is filled with NaN, so that a value read before it is written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("nan_in_new_memory")
@pytest.mark.parametrize("kind", ["one query", "holes", "ALiBi"])
@pytest.mark.parametrize("S", [64, 70])
@pytest.mark.parametrize(("H", "K"), [(4, 4), (6, 2)])
def test_attention_of_few_queries_by_products(monkeypatch, H, K, S, kind):
    monkeypatch.setattr(kernels, "MANY_KEYS", B * K * S)
    by_products = unittest.mock.Mock(side_effect=kernels.attention_by_products)
    monkeypatch.setattr(kernels, "attention_by_products", by_products)
    torch.manual_seed(0)
    queries, K = (1 if kind == "one query" else 3), (H if kind == "ALiBi" else K)
    q = torch.randn(B, H, queries, D)
    k, v = torch.randn(2, B, K, S + 9, D)[..., :S, :]  # parts of a cache
    mask = None
    if kind != "one query":
        looks = torch.ones(B, 1, queries, S, dtype=torch.bool).tril(S - queries)
        looks[1, :, :, 3:9] = False
        bias = (torch.arange(S) - S) * torch.tensor([0.5**i for i in range(H)])[:, None, None]
        mask = looks if kind == "holes" else bias.bfloat16().masked_fill(~looks, -torch.inf)
    bf16 = [t.bfloat16() for t in (q, k, v)]
    exact = plain_attention(*(t.float() for t in bf16), mask)
    assert not by_products.called
    with torch.set_grad_enabled(kind == "one query"):
        found = kernels.attention(*bf16, mask)
    assert by_products.called
    no_further([found], [plain_attention(*bf16, mask)], [exact])
    if kind == "one query":
        gradients = results(lambda *qkv: kernels.attention(*qkv, mask), bf16)
        plain = results(lambda *qkv: plain_attention(*qkv, mask), bf16)
        exact = results(lambda *qkv: plain_attention(*qkv, mask), [t.float() for t in bf16])
        no_further(gradients, plain, exact)


def test_nothing_is_kept_where_there_is_no_backward_pass():
    q, k, v = torch.randn(3, 1, 2, 5, 4)
    with torch.inference_mode():
        torch.testing.assert_close(kernels.attention(q, k, v, None), plain_attention(q, k, v, None))
    assert kernels.attention(q, k, v, None).grad_fn is None


@pytest.mark.parametrize("trained", [False, True])
def test_rms_norm(trained):
    torch.manual_seed(0)
    norm = RMSNorm(C, 1e-5)
    norm.weight.data.normal_()
    norm.weight.requires_grad_(trained)
    x, gradient = torch.randn(B, 7, C), torch.randn(B, 7, C)

    def plain(x, weight):
        return F.rms_norm(x.float(), (C,), eps=1e-5).to(x.dtype) * weight.to(x.dtype)

    def by(form, dtype):
        weight = norm.weight.detach().clone().requires_grad_(trained)
        found = results(lambda x: form(x, weight), [x.to(dtype)], gradient)
        return [*found, weight.grad] if trained else found

    exact = by(plain, torch.float32)
    for a, b in zip(by(norm.compute, torch.float32), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    no_further(by(norm.compute, torch.bfloat16), by(plain, torch.bfloat16), exact)


def test_swiglu():
    torch.manual_seed(0)
    inputs, gradient = torch.randn(2, B, 7, C), torch.randn(B, 7, C)

    def plain(gate, up):
        return F.silu(gate) * up

    exact = results(plain, inputs, gradient)
    for a, b in zip(results(fast.SwiGLU.apply, inputs, gradient), exact, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    half = inputs.bfloat16()
    exact = results(plain, half.float(), gradient)
    no_further(results(fast.SwiGLU.apply, half, gradient), results(plain, half, gradient), exact)


# ---------------------------------------------------------------- the loss
ROWS = [Example(list(range(3, 3 + n)), [0.0, 0.0, 1.0, 0.5] + [1.0] * (n - 4)) for n in (9, 6, 12)]
HEADS = {  # what is trained at the head or in front of it
    "nothing": lambda model: attach(model, "lora", r=2),
    "lora": lambda model: attach(model, "lora", r=2, sites=["up", "head"]),
    "dora": lambda model: attach(model, "dora", r=2, sites=["head"]),
    "bottleneck": lambda model: attach(model, "series", size=3, sites=["head", "mlp"]),
    "ia3": lambda model: attach(model, "ia3", sites=["head"]),
    "invertible": lambda model: attach(model, "invertible"),
    "embedding": lambda model: attach(model, "lora", r=2, sites=["embed", "up"], dropout=0.0),
    "full": lambda model: attach(model, resolve(kind="full", sites=["head", "embed"])),
}


def step_results(model) -> dict[str, Tensor]:
    """The loss and the gradients of a step, by name."""
    total = summed_loss(model, *collate(ROWS, 0, "cpu")) / 20
    total.backward()
    found = {name: p.grad for name, p in named_parameters(model).items()}
    model.zero_grad(set_to_none=True)
    return found | {"loss": total.detach()}


def plain_form(model, hidden, weights, targets, *trained) -> Tensor:
    return loss.plain_loss(model, hidden, weights, targets)


@pytest.mark.parametrize("chunk", [256, 4])
@pytest.mark.parametrize("head", HEADS)
def test_the_gradient_of_the_loss_is_made_in_the_forward_pass(any_tiny, monkeypatch, head, chunk):
    monkeypatch.setattr(loss_gradient, "CHUNK", chunk)
    torch.manual_seed(0)
    HEADS[head](any_tiny)
    for parameter in named_parameters(any_tiny).values():
        parameter.data += 0.1 * torch.randn_like(parameter)
    found = step_results(any_tiny)
    monkeypatch.setattr(loss.LossAndGradient, "apply", plain_form)
    for name, expected in step_results(any_tiny).items():
        assert (expected is None) == (found[name] is None), name
        if expected is not None:
            torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5)


def test_a_step_does_not_import_sympy(tiny, monkeypatch):
    """torch.autograd.grad does for a gradient that it is given, and the first step waits for it."""
    monkeypatch.setitem(sys.modules, "torch.fx.experimental.symbolic_shapes", None)
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(ModuleNotFoundError):
        torch.autograd.grad(2 * x, x, torch.ones(2))
    attach(tiny, "lora", r=2)
    assert step_results(tiny)["loss"] > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_in_16_bits_is_as_near_to_float32(tiny, monkeypatch, dtype):
    torch.manual_seed(0)
    x = torch.randn(40, tiny.config.hidden_size)
    targets, weights = torch.randint(0, 60, (40,)), torch.rand(40)
    found = {}
    for form in (loss.LossAndGradient.apply, plain_form):
        tiny.to(dtype).dtype = dtype
        found[form] = results(lambda h, f=form: f(tiny, h, weights, targets) * 1e-3, [x.to(dtype)])
    tiny.float().dtype = torch.float32
    exact = results(lambda h: plain_form(tiny, h, weights, targets) * 1e-3, [x.to(dtype).float()])
    no_further(*found.values(), exact)
