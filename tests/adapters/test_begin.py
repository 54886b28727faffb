"""EVA and LoftQ: starts of LoRA from activations and from the weights before quantisation."""

import importlib
from collections import Counter

import pytest
import torch
from conftest import write_checkpoint
from peft_bases import QV, compare, loaded_by_peft, randomised

from adapters import attach, begin, load_adapter, named_parameters, save_adapter
from adapters.attach import adapters_named
from adapters.begin import check_begun
from adapters.starts import Components
from files.errors import UserError
from model import load_model
from model.quantize import save_quantized

DOWN = "model.layers.1.mlp.down_proj"
MASK = torch.ones(2, 7, dtype=torch.bool)
MASK[0, :3] = MASK[1, 5:] = False


def batches(count: int = 3):
    generator = torch.Generator().manual_seed(5)
    return [(torch.randint(3, 61, (2, 7), generator=generator), MASK) for _ in range(count)]


def inputs_of(folder, path: str, some) -> torch.Tensor:
    """x [n, in] of a Linear of the base, at the tokens that count."""
    model, found = load_model(str(folder)), []
    site = model.get_submodule(path)
    site.register_forward_pre_hook(lambda site, inputs: found.append(inputs[0]))
    with torch.no_grad():
        for ids, _ in some:
            model(ids)
    return torch.cat([x[chosen] for x, (_, chosen) in zip(found, some, strict=True)])


def test_components_of_batches_are_those_of_all_rows():
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(1)) * torch.arange(1.0, 7) + 3
    found = Components(6)
    for part in x.split([20, 3, 27]):
        found.update(part)
    _, S, V = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    torch.testing.assert_close(found.explained(), S.square() / S.square().sum())
    torch.testing.assert_close((found.components * V).sum(1).abs(), torch.ones(6))
    assert (found.components.gather(1, found.components.abs().argmax(1, keepdim=True)) > 0).all()


def test_eva_gives_ranks_to_the_components_that_explain_most(folder):
    model, some = load_model(str(folder)), batches(1)  # of several a few digits are lost
    sites, r, rho = ["q", "o", "down"], 3, 2.0
    attach(model, "eva", sites=sites, r=r, rho=rho, alpha=6.0, dropout=0.0)
    paths = list(adapters_named(model, "default"))
    base = model(some[0][0])
    shares = []
    for path in paths:
        x = inputs_of(folder, path, some)
        S = torch.linalg.svdvals(x - x.mean(0))
        shares += [(float(s), path) for s in (S.square() / S.square().sum())[: int(r * rho)]]
    expected = Counter(path for _, path in sorted(shares, reverse=True)[: r * len(paths)])
    config = begin(model, some)
    here = adapters_named(model, "default")
    assert {path: one.options.r for path, one in here.items()} == dict(expected)
    assert len(set(expected.values())) > 1
    for path, one in here.items():
        assert one.scale == 2.0
        x = inputs_of(folder, path, some)
        V = torch.linalg.svd(x - x.mean(0), full_matrices=False)[2][: one.options.r]
        products = (one.lora_A @ V.T).abs()
        torch.testing.assert_close(products, torch.eye(len(V)), rtol=0, atol=1e-3)
    assert torch.equal(model(some[0][0]), base)
    assert config.kind == "lora"
    same = load_model(str(folder))
    attach(same, config)
    shapes = {name: one.shape for name, one in named_parameters(model).items()}
    assert {name: one.shape for name, one in named_parameters(same).items()} == shapes


def test_a_site_without_a_rank_has_no_adapter(folder, tmp_path):
    model = load_model(str(folder))
    attach(model, "eva", sites=["q", "down"], r=1, rho=6.0)
    config = begin(model, batches())
    here = adapters_named(model, "default")
    assert len(here) < 6
    assert sum(one.options.r for one in here.values()) == 6
    assert set(config.only.sites) == set(here)
    save_adapter(model, tmp_path / "it")
    load_adapter(other := load_model(str(folder)), tmp_path / "it")
    for path, one in adapters_named(other, "default").items():
        assert torch.equal(one.lora_A, here.pop(path).lora_A)
    assert not here


def test_a_part_of_a_mixture_begins_and_the_others_stay(folder):
    model = load_model(str(folder))
    table = {
        "a": {"preset": "eva", "r": 2, "sites": ["q"]},
        "b": {"preset": "series", "size": 3, "sites": ["q", "mlp"]},
    }
    attach(model, "lora", name="below", r=2)
    attach(model, table)
    before = {k: v.clone() for k, v in named_parameters(model).items() if "adapter_down" in k}
    config = begin(model, batches())
    assert [part.kind for part in config.parts.values()] == ["lora", "bottleneck"]
    after = named_parameters(model)
    assert len(before) == 6
    assert all(torch.equal(after[name], value) for name, value in before.items())
    check_begun(model)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_eva_is_pefts(family, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    folder = write_checkpoint(tmp_path / "base", family)
    base, fresh = (
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        for _ in range(2)
    )
    theirs_of = importlib.import_module("peft.tuners.lora.eva")
    exact = theirs_of.IncrementalPCA  # its randomised SVD differs in the fourth digit
    monkeypatch.setattr(
        theirs_of,
        "IncrementalPCA",
        lambda **o: exact(**(o | {"lowrank": False, "lowrank_seed": None})),
    )
    some = batches(2)
    options = {"r": 3, "lora_alpha": 6, "target_modules": QV[family]}
    eva = peft.EvaConfig(rho=2.0)
    eva.tau = -1.0  # every component counts as converged after the second batch
    config = peft.LoraConfig(
        task_type="CAUSAL_LM", init_lora_weights="eva", eva_config=eva, **options
    )
    theirs = peft.get_peft_model(base, config).eval()
    loader = [{"input_ids": ids, "labels": torch.where(chosen, ids, -100)} for ids, chosen in some]
    peft.initialize_lora_eva_weights(theirs, loader, show_progress_bar=False)
    ours = load_model(str(folder))
    sites = ["qkv"] if family == "bloom" else ["q", "v"]
    attach(ours, "eva", r=3, alpha=6.0, rho=2.0, sites=sites, dropout=0.0)
    begin(ours, some)
    A = {key: value for key, value in theirs.named_parameters() if ".lora_A." in key}
    here = adapters_named(ours, "default")
    assert len(A) == len(here)
    for path, one in here.items():
        torch.testing.assert_close(
            one.lora_A, A[f"base_model.model.{path}.lora_A.default.weight"], rtol=1e-4, atol=1e-4
        )
    randomised(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path / "theirs")
    load_adapter(read := load_model(str(folder)), tmp_path / "theirs")
    compare(read, theirs)
    randomised(p for adapter in here.values() for p in adapter.parameters())
    save_adapter(ours, tmp_path / "ours")
    compare(ours, loaded_by_peft(fresh, tmp_path / "ours"))


def test_loftq_starts_nearest_to_the_weight(folder):
    """Q + s B A is as near to W as rank r brings it; PEFT decomposes alike."""
    whole, model = load_model(str(folder)), load_model(str(folder), quantize="nf4")
    codes = model.get_submodule(DOWN).codes.clone()
    attach(model, "loftq", r=4, alpha=2.0, sites=["q", "down"])
    config = begin(model, [])
    assert (config.kind, config.only.sites) == ("lora", ("q", "down"))
    for path, one in adapters_named(model, "default").items():
        lost = whole.get_submodule(path).weight - model.get_submodule(path).weight
        update = one.scale * one.lora_B @ one.lora_A
        U, S, V = torch.linalg.svd(lost)
        torch.testing.assert_close(update, (U[:, :4] * S[:4]) @ V[:4], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close((lost - update).norm(), S[4:].norm())
        torch.testing.assert_close(one.lora_A.norm(), one.lora_B.norm())
        utils = pytest.importorskip("peft.utils.loftq_utils", reason="peft is not installed")
        found = utils._low_rank_decomposition(lost.detach(), 4)
        torch.testing.assert_close(update, found["L"] @ found["R"], rtol=1e-3, atol=1e-6)
    assert torch.equal(model.get_submodule(DOWN).codes, codes)


def test_what_cannot_begin(folder, tmp_path):
    plain = load_model(str(folder))
    attach(plain, "loftq", r=3)
    with pytest.raises(UserError, match="needs a quantised base: give --quantize nf4"):
        begin(plain, [])
    with pytest.raises(UserError, match="'default' has no LoftQ start yet"):
        check_begun(plain)
    model = load_model(str(folder), quantize="nf4")
    save_quantized(model, tmp_path / "nf4")
    model = load_model(str(tmp_path / "nf4"))
    attach(model, "loftq", r=3)
    with pytest.raises(UserError, match="holds the weights quantised: give the model that it"):
        begin(model, [])
    attach(plain, "eva", name="few", sites=["q"], r=8, rho=1.0)
    with pytest.raises(UserError, match="too few tokens with a loss for 24 components"):
        begin(plain, [(torch.tensor([[5, 9, 4]]), torch.tensor([[False, True, True]]))], "few")
