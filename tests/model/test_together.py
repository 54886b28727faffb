"""One packed product for Linears that read the same x."""

import pytest
import torch
from conftest import write_checkpoint

import model.onednn as onednn
from model import load_model
from model.packed import pack

pytestmark = pytest.mark.skipif(
    not onednn.is_usable(torch.float32), reason="no packed products here"
)


@pytest.fixture
def products(monkeypatch) -> list[int]:
    """The outputs of each packed product."""
    sizes, multiply = [], onednn.multiply

    def counted(x, weight, bias=None):
        y = multiply(x, weight, bias)
        sizes.append(y.shape[-1])
        return y

    monkeypatch.setattr(onednn, "multiply", counted)
    monkeypatch.setattr(onednn, "FLOAT32_FROM", 1)
    return sizes


@torch.no_grad()
def test_each_gets_its_own_product_of_its_own_x(tmp_path, products):
    model = load_model(str(write_checkpoint(tmp_path, "llama")))
    pack(model)
    attention = model.blocks[0].self_attn
    q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
    x, other = torch.randn(2, 3, 1, q.in_features)
    wanted = {(linear, y): linear.product(y) for linear in (q, k, v) for y in (x, other)}
    total = q.out_features + k.out_features + v.out_features
    orders = [  # and how many products they take
        ([(q, x), (k, x), (v, x)], 1),
        ([(q, other), (k, x), (v, x), (q, x)], 2),
        ([(q, x), (q, x), (k, x), (v, x), (v, x)], 3),
    ]
    for calls, count in orders:
        products.clear()
        for linear, y in calls:
            torch.testing.assert_close(linear(y), wanted[linear, y], rtol=1e-5, atol=1e-5)
        assert products == [total] * count
    k.weight.mul_(2)  # its own product is plain from now on, and the others' stay
    products.clear()
    for linear in (q, k, v):
        expected = wanted[linear, other] * (2 if linear is k else 1)
        torch.testing.assert_close(linear(other), expected, rtol=1e-5, atol=1e-5)
    assert products == [total, k.out_features]
    pack(model)  # k has a copy again
    torch.testing.assert_close(k(x), 2 * wanted[k, x], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "changes", "shares"),
    [
        ("llama", {}, {"q", "k", "v", "gate", "up"}),
        ("llama", {"model_type": "qwen2"}, {"gate", "up"}),  # q, k and v have biases
        ("gptj", {}, {"q", "k", "v"}),
        ("opt", {}, set()),
    ],
)
def test_which_share(tmp_path, products, family, changes, shares):
    model = load_model(str(write_checkpoint(tmp_path, family, **changes)))
    pack(model)
    block = model.blocks[1]
    linears = {name: block.get_submodule(path) for name, path in model.sites.items()}
    found = {name for name, linear in linears.items() if getattr(linear, "packed", None)}
    assert {name for name in found if linears[name].packed.together} == shares
    assert shares < found
