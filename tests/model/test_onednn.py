"""Products by oneDNN: outputs and every gradient are those of F.linear, wherever they are used."""

import pytest
import torch
import torch.nn.functional as F
from methods import IN_TURN, attach_small, randomise

from adapters import named_parameters
from data.batches import Example, batch_of
from model import onednn
from model.onednn import is_usable, linear
from train.loss import summed_loss

pytestmark = pytest.mark.skipif(not is_usable(torch.float32), reason="no oneDNN products here")


@pytest.fixture(autouse=True)
def used(monkeypatch) -> list[int]:
    """Everything in float32 is multiplied by oneDNN, whatever the processor -> its products."""
    monkeypatch.setattr(onednn, "FLOAT32_FROM", 1)
    monkeypatch.setattr(onednn, "is_faster_here", lambda: True)
    multiply, calls = onednn.multiply, []

    def counted(x, *rest):
        calls.append(x.numel())
        return multiply(x, *rest)

    monkeypatch.setattr(onednn, "multiply", counted)
    return calls


def gradients(form, tensors: list[torch.Tensor], dy: torch.Tensor) -> list[torch.Tensor]:
    tensors = [tensor.clone().requires_grad_() for tensor in tensors]
    y = form(*tensors)
    y.backward(dy)
    return [y.detach(), *(tensor.grad for tensor in tensors)]


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(
    ("shape", "out"), [((2, 30, 64), 48), ((50, 16), 96), ((1, 3), 5), ((2, 3, 4, 70), 16)]
)
def test_product_and_gradients(shape, out, has_bias, used):
    torch.manual_seed(0)
    sizes = [shape, (out, shape[-1]), (out,)][: 2 + has_bias]
    tensors = [torch.randn(size) for size in sizes]
    rows = shape[:-1]
    layouts = (
        torch.randn(*rows, out),
        torch.ones(()).expand(*rows, out),  # the gradient of a sum
        torch.randn(out, *rows).movedim(0, -1),
    )
    for dy in layouts:
        expected = gradients(F.linear, tensors, dy)
        for a, b in zip(gradients(linear, tensors, dy), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max()))
    assert len(used) == 3 * len(layouts)
    with torch.inference_mode():
        torch.testing.assert_close(linear(*tensors), expected[0], rtol=1e-5, atol=1e-4)


def loss_and_gradients(model) -> dict[str, torch.Tensor]:
    rows = [Example(list(range(3, 3 + n)), [0.0, 0.0] + [1.0] * (n - 2)) for n in (9, 6, 12)]
    total = summed_loss(model, *batch_of(rows, 0, "cpu", True, model.prompt_length)) / 20
    total.backward()
    return {name: p.grad for name, p in named_parameters(model).items()} | {"loss": total.detach()}


@pytest.mark.parametrize(("any_family", "method"), IN_TURN)
def test_a_step_of_every_method(any_tiny, method, monkeypatch, used):
    """As near to a step in float64, where the method has that, as the plain one, or to 1e-5."""
    model = any_tiny
    attach_small(model, method)
    randomise(model, 0.1)  # more saturates the softmax of LoRA everywhere, which magnifies rounding
    found = loss_and_gradients(model.eval())  # without dropout
    assert len(used) > 2 * len(model.blocks)
    monkeypatch.setattr(onednn, "is_faster_here", lambda: False)
    model.zero_grad()
    plain = {name: tensor.clone() for name, tensor in loss_and_gradients(model).items()}
    model.zero_grad()
    if method != "dora":
        model.double().dtype = torch.float64
    exact = loss_and_gradients(model)
    largest = max(float(gradient.abs().max()) for gradient in exact.values())
    rounding = max(float((plain[name] - exact[name]).abs().max()) for name in exact)
    for name, gradient in found.items():
        error = float((gradient - exact[name]).abs().max())
        assert error <= max(1e-5 * largest, 2 * rounding), name


def test_nothing_else_is_multiplied_by_it(monkeypatch, used):
    x, weight = torch.randn(4, 8), torch.randn(3, 8)
    linear(x.to(torch.bfloat16), weight.to(torch.bfloat16))
    linear(x.double(), weight.double())
    assert linear(x.to("meta"), weight.to("meta")).shape == (4, 3)
    monkeypatch.setattr(onednn, "FLOAT32_FROM", 4 * 8 * 3 + 1)
    linear(x, weight)
    monkeypatch.setattr(onednn, "FLOAT32_FROM", 1)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    linear(x, weight)
    assert not used


@pytest.mark.parametrize(
    ("name", "avx512", "expected"),
    [("AMD EPYC 9755", True, True), ("AMD EPYC 7763", False, False), ("Intel Xeon", True, False)],
)
def test_the_processors_that_use_it(monkeypatch, name, avx512, expected):
    monkeypatch.undo()
    features = {"cpu_name": name, "avx512_f": avx512}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features, raising=False)
    assert onednn.is_faster_here.__wrapped__() is expected
    monkeypatch.setattr(onednn, "is_usable", lambda dtype: False)
    assert onednn.is_faster_here.__wrapped__() is False
