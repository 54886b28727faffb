"""int8 and nf4 weights: close to what they stand for, frozen, and every adapter on top."""

from itertools import islice, pairwise
from statistics import NormalDist

import pytest
import torch
import torch.nn.functional as F
from conftest import DEVICES
from families import config_of
from methods import ALL as METHODS
from methods import IDS, attach_small, randomise

from adapters import attach, load_adapter, named_parameters, save_adapter, use
from data.batches import encode_row
from data.prompts import template
from data.wordproblems import TRAINED, problems
from eval.fidelity import compare, predictions
from eval.generate import generate
from experiments.announce import count_base
from model import load_model, load_tokenizer
from model.config import family_and_config, skeleton
from model.quantize import STORED_AS, int8, quantize_skeleton, quantized, quantized_weights
from model.quantize.nf4 import LEVELS, nf4_blocks
from model.registry import pocket_names
from model.sites import Linear

FAMILIES = ["llama", "bloom", "opt", "gptj"]

HOW = list(STORED_AS)
SHAPES = [
    (96, 64),
    (3, 5),
    (33, 35),
    (1, 64),
    (70, 1),
    (300, 300),
]  # divided by 64 or not, odd, more than one group of blocks


def stored(how: str, weight: torch.Tensor, device="cpu"):
    """A Linear without bias that holds this weight quantised."""
    with torch.device("meta"):
        plain = Linear(weight.shape[1], weight.shape[0])
    linear = STORED_AS[how](plain)
    linear.allocate(torch.device(device))
    linear.store(weight.to(device))
    assert {
        leaf: (tuple(tensor.shape), tensor.dtype) for leaf, tensor in linear._buffers.items()
    } == linear.layout()
    linear.dtype = weight.dtype
    return linear


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bits(model) -> list[torch.Tensor]:
    """All that a quantised model stores for its Linears."""
    return [
        buffer.clone()
        for linear in quantized(model).values()
        for buffer in linear.buffers(recurse=False)
    ]


def same(one, other) -> bool:
    return len(one) == len(other) > 0 and all(
        a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


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


def test_moving_a_model_to_another_dtype_leaves_what_is_stored():
    model = load_model("pocket-llama", quantize="nf4", dtype=torch.float32)
    before = bits(model)
    model.to(torch.bfloat16)
    assert same(bits(model), before)
    assert {linear.weight.dtype for linear in quantized(model).values()} == {torch.bfloat16}
    assert model.input_embedding.weight.dtype == torch.bfloat16


# ---------------------------------------------------------------- models
@pytest.mark.parametrize("name", pocket_names())
def test_the_pocket_models_stay_what_they_are(name):
    """Perplexity and KL divergence on the solutions of problems, against the plain weights in
    float32. (A level of nf4 too many, a wrong scale or a swapped nibble is far outside.)
    """
    tokenizer = load_tokenizer(name)
    rows = [
        encode_row(tokenizer, row, template("alpaca", tokenizer), 256)[0]
        for manner in TRAINED
        for row in islice(problems(manner, "test", 0), 3)
    ]
    plain = load_model(name, dtype=torch.float32)
    reference = list(predictions(plain, rows))
    assert compare(reference, iter(reference)).divergence == 0
    for how, most in (("int8", 2e-5), ("llm-int8", 1e-4), ("nf4", 1e-3)):
        model = load_model(name, dtype=torch.float32, quantize=how)
        found = compare(reference, predictions(model, rows))
        assert 0 < found.divergence < most
        assert abs(found.other / found.reference - 1) < 20 * most
        assert model.quantize == how
        assert model.fingerprint == plain.fingerprint
        assert count_base(model) == count_base(plain)
        assert all(type(site) is Linear for site in (model.lm_head,))
        assert quantized_weights(model) == sum(
            p.numel() for p in plain.blocks.parameters() if p.dim() == 2
        )


@pytest.mark.parametrize("how", HOW)
def test_answers_depend_on_nothing_but_the_row(any_folder, how):
    model = load_model(str(any_folder), quantize=how)
    rows = [[5, 9, 4], [7, 3, 8, 11, 6, 21, 9], [3]]
    alone = [generate(model, torch.tensor([row]), max_new_tokens=8)[0] for row in rows]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    assert generate(model, ids, mask, max_new_tokens=8) == alone
    together, single = model(ids, mask)[1], model(torch.tensor([rows[1]]))[0]
    assert (together - single).abs().max() / single.std() < 1e-4


@pytest.mark.parametrize("how", HOW)
def test_checkpointing_and_inference_mode(folder, how):
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = load_model(str(folder), quantize=how)
        attach(model, "lora", dropout=0.0)
        randomise(model)
        model.checkpointing = checkpointing
        with torch.inference_mode():
            model(IDS)
        model(IDS).square().mean().backward()
        found.append([p.grad for p in named_parameters(model).values()])
    assert same(*found)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", ["int8", "nf4"])
def test_every_adapter_on_top(folder, tmp_path, how, method):
    """Attached, a step of training with a gradient in every parameter, saved and loaded again;
    the base stays to the bit.
    """
    torch.manual_seed(0)
    model = load_model(str(folder), quantize=how)
    before, start = bits(model), model(IDS)
    attach_small(model, method)
    if method != "fusion":
        assert (model(IDS) - start).abs().max() / start.std() < 1e-3 or not starts_at_base(model)
    randomise(model, 0.1)
    use(model, ["default"])
    model.train()
    model(IDS).square().mean().backward()
    trained = named_parameters(model)
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    torch.optim.SGD(trained.values(), lr=0.01).step()
    model.eval()
    assert same(bits(model), before)
    save_adapter(model, tmp_path / "adapter") if method != "fusion" else None
    if method != "fusion":
        again = load_model(str(folder), quantize=how)
        load_adapter(again, tmp_path / "adapter")
        assert torch.equal(again(IDS), model(IDS))


def starts_at_base(model) -> bool:
    return all(
        one.starts_at_base
        for site in model.modules()
        for one in getattr(site, "adapters", {}).values()
    )


@pytest.mark.parametrize("how", HOW)
def test_an_adapter_fits_the_base_however_it_is_stored(folder, tmp_path, how):
    model = load_model(str(folder), quantize=how)
    attach(model, "lora")
    randomise(model)
    save_adapter(model, tmp_path / "adapter")
    plain = load_model(str(folder))
    load_adapter(plain, tmp_path / "adapter")
    assert (plain(IDS) - model(IDS)).std() / plain(IDS).std() < (
        0.05 if "int8" in how else 0.5
    )  # random weights of 32 columns suffer most


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_memory(family, how):
    """Shapes and bytes of a quantised model, an adapter on it, forward and backward: all without
    values.
    """
    module, config = family_and_config(config_of(family), "test")
    model = skeleton(module, config)
    weights = sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2)
    quantize_skeleton(model, how)
    assert sum(one.in_features * one.out_features for one in quantized(model).values()) == weights
    stored = sum(b.numel() * b.element_size() for b in model.buffers())
    assert stored / weights < (
        1.2 if "int8" in how else 0.6
    )  # tiny rows: a float32 scale for 32 weights
    model.requires_grad_(False)
    attach(model, "lora")
    for site in quantized(model).values():
        x = torch.zeros(2, 5, site.in_features, device="meta", requires_grad=True)
        site(x).sum().backward()
        assert x.grad.is_meta
        assert x.grad.shape == x.shape
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters() if p.requires_grad)
