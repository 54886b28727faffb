"""Models with int8 and nf4 weights: answers, checkpointing, and every adapter on top."""

from itertools import cycle, islice

import pytest
import torch
from families import config_of
from methods import IDS, IN_TURN, attach_small, randomise
from quantised import FAMILIES, HOW, bits, same

from adapters import attach, load_adapter, named_parameters, save_adapter, use
from data.batches import encode_row
from data.prompts import template
from data.wordproblems import TRAINED, problems
from eval.fidelity import compare, predictions
from eval.generate import generate
from experiments.facts import count_base
from model import load_model, load_tokenizer
from model.config import family_and_config, skeleton
from model.quantize import quantize_skeleton, quantized, quantized_weights
from model.registry import pocket_names
from model.sites import Linear


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


READ_WEIGHTS = ["dora", "pissa", "loftq", "hira", "oft", "shira"]
ON_TOP = [
    *zip(cycle(["int8", "nf4"]), sorted({method for _, method in IN_TURN})),
    *(("nf4", method) for method in READ_WEIGHTS),
]


@pytest.mark.parametrize(("how", "method"), dict.fromkeys(ON_TOP))
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
    if method != "fusion":
        save_adapter(model, tmp_path / "adapter")
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
