"""Packed copies of weights: the products and answers of the plain ones, and never of old values."""

import copy
import pickle
from collections import Counter

import pytest
import torch
from conftest import DEVICES, write_checkpoint
from methods import attach_small, randomise

import model.onednn as onednn
import model.packed as packed
from adapters import use
from adapters.merge import merge
from eval.generate import generate
from eval.likelihood import log_likelihoods
from model import load_model
from model.onednn import is_usable
from model.packed import pack
from model.quantize.int8 import Int8
from model.sites import Linear

DTYPES = [
    pytest.param(
        dtype, marks=pytest.mark.skipif(not is_usable(dtype), reason="no packed products here")
    )
    for dtype in (torch.float32, torch.bfloat16)
]
needs_packed = pytest.mark.skipif(not is_usable(torch.float32), reason="no packed products here")
IDS = torch.randint(3, 61, (3, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    """Tiny float32 weights are packed as well."""
    monkeypatch.setattr(onednn, "FLOAT32_FROM", 1)


@pytest.fixture
def used(monkeypatch) -> Counter:
    """How many products a packed copy computed, by the rows of x."""
    rows = Counter()

    def counted(copy, x, *rest):
        rows[x.numel() // x.shape[-1]] += 1
        return product(copy, x, *rest)

    product = packed.Packed.product
    monkeypatch.setattr(packed.Packed, "product", counted)
    return rows


def random_linear(dtype: torch.dtype, out: int = 50, inner: int = 70) -> Linear:
    linear = Linear(inner, out, bias=True).to(dtype).requires_grad_(False)
    for seed, parameter in enumerate(linear.parameters()):
        parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return linear


def linears(model) -> list[Linear]:
    return [module for module in model.modules() if isinstance(module, Linear)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("out", "inner"), [(50, 70), (1, 3), (129, 64)])
def test_a_packed_product_is_the_plain_one(dtype, out, inner, used):
    linear = random_linear(dtype, out, inner)
    linear.packed = packed.Packed(linear)
    for shape in ((1, 1), (4, 1), (2, 33)):
        x = torch.randn(*shape, inner, generator=torch.Generator().manual_seed(9)).to(dtype)
        plain = linear.product(x)
        with torch.inference_mode():
            torch.testing.assert_close(linear(x), plain, rtol=1.6e-2, atol=2e-5)
    assert used.total() == 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("family", "quantize"),
    [(family, None) for family in ("llama", "bloom", "opt", "gptj")]
    + [("llama", how) for how in ("int8", "nf4", "llm-int8")],
)
def test_answers_are_those_of_plain_weights(tmp_path, family, dtype, quantize, used):
    model = load_model(str(write_checkpoint(tmp_path, family)), dtype, quantize=quantize)
    attach_small(model, "lora")
    randomise(model)
    figures = {}
    for how in ("plain", "packed"):
        model.decode_memory = how
        tokens = generate(model, IDS, max_new_tokens=6)
        pairs = [(row.tolist()[:4], row.tolist()[4:]) for row in IDS]
        figures[how] = tokens, torch.tensor([value for value, _ in log_likelihoods(model, pairs)])
        packs = sum(linear.packed is not None for linear in linears(model))
        assert packs == {"plain": 0, "packed": len(linears(model))}[how] or quantize == "llm-int8"
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(figures["packed"][1], figures["plain"][1], rtol=tolerance, atol=0)
    if dtype == torch.float32:
        assert figures["packed"][0] == figures["plain"][0]
    assert used[3]  # a token of each row
    assert used[27] or quantize == "llm-int8"  # the prompts; of llm-int8 only the head is packed


CHANGES = {  # what changes a weight that has a packed copy
    "in place": lambda model, linear: linear.weight.mul_(1.5),
    "another parameter": lambda model, linear: setattr(
        linear, "weight", torch.nn.Parameter(linear.weight * 1.5, requires_grad=False)
    ),
    "other data": lambda model, linear: setattr(linear.weight, "data", linear.weight * 1.5),
    "its state": lambda model, linear: model.load_state_dict(
        {name: tensor * 1.5 for name, tensor in model.state_dict().items()}
    ),
    "merged": lambda model, linear: merge(model),
    "cast": lambda model, linear: model.to(torch.float64).to(torch.float32),
}


@needs_packed
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_never_answered_by_an_old_copy(tmp_path, change, used):
    model = load_model(str(write_checkpoint(tmp_path)))
    attach_small(model, "lora")
    randomise(model)
    model.decode_memory = "packed"
    with torch.inference_mode():
        pack(model)
        model(IDS)
        assert used.total() == len(linears(model))
    linear = model.blocks[0].mlp.up_proj
    before = linear.packed
    with torch.no_grad():
        CHANGES[change](model, linear)
        used.clear()
        x = torch.randn(2, 32)
        if change != "merged":  # LoRA is at q and v
            torch.testing.assert_close(linear.compute(x, linear.weight, None), linear(x))
        after, count = model(IDS), used.total()
        assert count < len(linears(model))
        model.decode_memory = "plain"
        pack(model)
        torch.testing.assert_close(after, model(IDS), rtol=1e-4, atol=1e-4)
        model.decode_memory = "packed"
        pack(model)
        torch.testing.assert_close(model(IDS), after, rtol=1e-4, atol=1e-4)
    assert linear.packed is not before or change == "merged"
    assert used.total() == count + len(linears(model))


@needs_packed
def test_an_inference_tensor_has_no_copy(tmp_path):
    with torch.inference_mode():
        model = load_model(str(write_checkpoint(tmp_path)))
        assert not pack(model)


@needs_packed
def test_a_quantised_weight_that_changed_is_packed_anew(tmp_path):
    model = load_model(str(write_checkpoint(tmp_path)), quantize="int8")
    assert pack(model)
    with torch.inference_mode():
        linear = next(module for module in linears(model) if isinstance(module, Int8))
        x = torch.randn(2, 32)
        before = linear(x)
        linear.codes.neg_()
        torch.testing.assert_close(linear(x), -before)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("quantize", ["int8", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_quantised_weights_have_a_copy_without_oneDNN_too(
    tmp_path, monkeypatch, device, quantize, dtype
):
    """On a card, and where a CPU lacks the functions: made once from what is stored, same bits."""
    monkeypatch.setattr(onednn, "is_usable", lambda dtype: False)
    folder = str(write_checkpoint(tmp_path))
    model = load_model(folder, dtype, device=device, quantize=quantize)
    assert pack(model)
    copied = [linear for linear in linears(model) if linear.packed]
    assert len(copied) == len(linears(model)) - 1  # without the head
    with torch.inference_mode():
        for linear in copied:
            x = torch.randn(9, linear.in_features, device=device).to(dtype)
            wanted = linear.product(x)
            with monkeypatch.context() as here:
                here.setattr(linear, "product", None)
                assert torch.equal(linear(x), wanted)


@needs_packed
def test_training_copies_and_files_have_none(tmp_path, used):
    model = load_model(str(write_checkpoint(tmp_path)))
    keys = list(model.state_dict())
    assert pack(model)
    assert list(model.state_dict()) == keys
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not any(linear.packed for linear in linears(other))
    model(IDS)  # with gradients allowed
    assert not used
    model.train()
    assert not any(linear.packed for linear in linears(model))


@needs_packed
def test_the_adapters_in_use_may_change(tmp_path):
    """A copy is of the base alone: what is attached, switched off or merged later is seen."""
    model = load_model(str(write_checkpoint(tmp_path)))
    base = generate(model, IDS, max_new_tokens=8)
    attach_small(model, "dora")
    randomise(model)
    adapted = generate(model, IDS, max_new_tokens=8)
    use(model, [])
    assert generate(model, IDS, max_new_tokens=8) == base != adapted


@needs_packed
def test_auto_takes_half_of_the_free_memory(tmp_path, monkeypatch):
    model = load_model(str(write_checkpoint(tmp_path)))
    need = packed.packed_bytes(linears(model))
    assert need == sum(linear.weight.nbytes for linear in linears(model))
    for free, expected in ((2 * need, True), (2 * need - 1, False)):
        monkeypatch.setattr(packed, "free_memory", lambda device, free=free: free)
        for linear in linears(model):
            linear.packed = None
        assert pack(model) is expected
        assert all((linear.packed is not None) is expected for linear in linears(model))
    model.decode_memory = "packed"
    assert pack(model)
    model.decode_memory = "auto"
    assert pack(model)  # what is there stays: no more memory is taken


def test_without_the_functions_everything_is_plain(tmp_path, monkeypatch):
    """They are private: they may be missing, raise, or multiply wrong."""

    def missing(*arguments):
        raise AttributeError("no such operator")

    for function in (missing, lambda x, weight, bias=None: x @ x.new_ones(70, 50)):
        monkeypatch.setattr(onednn, "multiply", function)
        is_usable.cache_clear()
        onednn.is_faster_here.cache_clear()
        model = load_model(str(write_checkpoint(tmp_path)))
        model.decode_memory = "packed"
        assert not pack(model)
        assert generate(model, IDS, max_new_tokens=3)
    monkeypatch.undo()
    is_usable.cache_clear()
    onednn.is_faster_here.cache_clear()


# ---------------------------------------------------------------- casts of adapters
@pytest.mark.parametrize("name", ["lora", "parallel", "vera", "pissa", "dora"])
def test_adapters_keep_their_casts_while_answers_are_made(tmp_path, name):
    model = load_model(str(write_checkpoint(tmp_path)), torch.bfloat16)
    model.decode_memory = "plain"
    attach_small(model, name)
    randomise(model)

    def kept() -> list[torch.Tensor]:
        return [
            entry[-1]
            for module in model.modules()
            for entry in vars(module).get("casts", {}).values()
        ]

    def answers(mode) -> torch.Tensor:
        with mode():
            return model(IDS).clone()

    expected = model(IDS).detach()  # with gradients nothing is kept
    assert not kept()
    first = answers(torch.inference_mode)
    casts = kept()
    assert casts
    assert all(cast.dtype == torch.bfloat16 for cast in casts)
    assert torch.equal(first, expected)
    assert torch.equal(answers(torch.no_grad), expected)
    model.eval()
    assert all(new is old for new, old in zip(kept(), casts, strict=True))

    parameters = [p for n, p in model.named_parameters() if ".adapters." in n]
    optimizer = torch.optim.SGD(parameters, lr=0.5)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    changed = model(IDS).detach()
    assert torch.equal(answers(torch.inference_mode), changed)
    assert not torch.equal(changed, expected)
    for parameter in parameters:
        parameter.data = parameter.data * 0.5
    assert torch.equal(answers(torch.inference_mode), model(IDS))

    other = copy.deepcopy(model)
    assert torch.equal(other(IDS), model(IDS))
    assert not any(vars(module).get("casts") for module in other.modules())
    model.train()
    assert not kept()
