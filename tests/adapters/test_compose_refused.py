"""Compositions that cannot be, and members of a fusion: what is refused, frozen and given back."""

import json

import pytest
import torch
from composed import (
    THREE,
    out,
    several,  # noqa: F401
)
from methods import IDS, randomise
from safetensors.torch import load_file, save_file

from adapters import (
    Average,
    Rows,
    attach,
    combine,
    load_adapter,
    load_adapters,
    named_parameters,
    parameters,
    remove,
    save_adapter,
    save_adapters,
    use,
)
from adapters.attach import adapter_names, adapters_named, in_order
from adapters.config import resolve
from model import UserError, load_model
from train.loss import summed_loss


@pytest.mark.parametrize("any_family", ["llama"])
def test_a_folder_that_does_not_fit_leaves_the_model_as_it_was(several, tmp_path):
    save_adapters(several, tmp_path / "all")
    again = load_model(str(several.folder))
    attach(again, "lora", name="mine")
    for on, said in (
        (["a", "x"], "unknown adapter name 'x'"),
        ([{"avrage": []}], "neither an adapter's name"),
        ("a", "on = .a. should be a list"),
        ([{"average": ["a", "p"], "weights": [1, 1]}], "adds nothing"),
        ([{"average": ["a"], "weights": []}], "as many weights"),
    ):
        setup = json.loads((tmp_path / "all" / "adapters.json").read_text()) | {"on": on}
        (tmp_path / "all" / "adapters.json").write_text(json.dumps(setup))
        with pytest.raises(UserError, match=said):
            load_adapters(again, tmp_path / "all")
        assert (adapter_names(again), in_order(again)) == (["mine"], ["mine"])


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda m: use(m, [Average("a", "z")]), "unknown adapter name 'z'"),
        (lambda m: use(m, [Average("p", "q")]), "adds nothing to an output"),
        (lambda m: Average("a", "a"), "different names"),
        (lambda m: Average("a", "b", weights=[1.0]), "as many weights"),
        (lambda m: Rows(), "for each row"),
        (lambda m: out(m, Rows("p", None, "p")), "0 and 3 virtual tokens"),
        (lambda m: out(m, Rows("a", "b")), "for a batch of 2 rows, this one has 3"),
        (lambda m: combine(m, {"a": 1.0, "l": 1.0}, "x"), "bottleneck and lora"),
        (lambda m: combine(m, {"p": 1.0}, "x"), "have no|has no sum"),
        (
            lambda m: combine(m, {"a": 1.0, "b": 1.0}, "x", how="weights"),
            "same places, sizes and options",
        ),
        (
            lambda m: combine(m, {"a": 1.0, "l": 1.0}, "x", how="weights"),
            "same places, sizes and options",
        ),
        (lambda m: combine(m, {}, "x"), "a weight each"),
        (lambda m: combine(m, {"l": 1.0}, "x", "ties", density=1e-4), "keeps none of"),
        (lambda m: combine(m, {"l": 1.0}, "x", "dare", seed=2**63), "seed 9223372036854775808 is"),
        (lambda m: combine(m, {"a": 1.0}, "a"), "already has"),
        (lambda m: combine(m, {"a": 1.0}, "x", how="output"), "did you mean 'outputs'"),
        (lambda m: attach(m, "fusion", name="x", of=["a", "z"]), "no adapter 'z' is loaded"),
        (lambda m: attach(m, "fusion", name="x", of=["a"]), "two adapters"),
        (
            lambda m: attach(m, "fusion", name="x", of=["p", "q"], sites=["q"]),
            "more than to add|sits where its members do|unknown site",
        ),
        (lambda m: use(m, ["a", "a"]), "named twice"),
        (lambda m: use(m, "a"), "a list of names"),
        (lambda m: use(m, ["a"], train=["b"]), "to be trained and is not on"),
        (lambda m: Average("a", "b", weights=["x", 1.0]), "finite numbers"),
        (lambda m: Average("a", weights=[float("nan")]), "finite numbers"),
        (lambda m: Rows("a", 3), "names and None"),
    ],
)
@pytest.mark.parametrize("any_family", ["llama"])
def test_what_cannot_be_composed_is_named_and_changes_nothing(several, act, said):
    use(several, ["a"])
    names, expected = adapter_names(several), several(THREE)
    with pytest.raises(UserError, match=said) as error:
        act(several)
    assert "\n" not in str(error.value)
    use(several, ["a"])
    assert adapter_names(several) == names
    assert torch.equal(several(THREE), expected)


def test_members_of_a_fusion_stay(several):
    attach(several, "fusion", name="f", of=["a", "b"])
    with pytest.raises(UserError, match="'f' is built on 'a'"):
        remove(several, "a")
    remove(several, "f")
    remove(several, "a")
    assert "a" not in adapter_names(several)


def test_a_fusion_refuses_members_that_change_what_goes_in(any_tiny):
    for name in ("one", "two"):
        attach(any_tiny, "ia3", name=name, sites=["down"])
    with pytest.raises(UserError, match="more than to add"):
        attach(any_tiny, "fusion", name="f", of=["one", "two"], sites=["down"])


def test_a_fusion_takes_its_members_out_of_compositions(several):
    use(several, [Average("a", "b"), "l"])
    attach(several, "fusion", name="f", of=["a", "b"])
    assert in_order(several) == ["l", "f"]
    expected = several(THREE)
    use(several, ["l", "f"])
    assert torch.equal(several(THREE), expected)


def test_members_of_a_fusion_are_frozen_even_if_they_were_trained_before(several):
    use(several, ["a", "b"], train=["b"])
    attach(several, "fusion", name="f", of=["a", "b"])
    assert all(
        "fusion_key" in path or "query" in path or "value" in path
        for path in named_parameters(several)
    )
    several(THREE).square().mean().backward()
    assert all(
        p.grad is None for one in adapters_named(several, "b").values() for p in one.parameters()
    )


def test_what_is_removed_is_gone_everywhere(tiny):
    attach(tiny, "lora", name="one", r=2, sites=["q"])
    attach(tiny, "lora", name="two", r=2, sites=["v"])
    randomise(tiny)
    base = out(tiny)
    use(tiny, [Average("one", "two")])
    remove(tiny, "one")
    assert in_order(tiny) == []
    assert torch.equal(tiny(THREE), base)


def test_a_fusion_that_does_not_load_leaves_its_members_on_and_trained(several, tmp_path):
    attach(several, "fusion", name="f", of=["a", "b"])
    save_adapter(several, tmp_path, "f")
    remove(several, "f")
    use(several, ["a", "b"], train=["b"])
    trained, expected = [id(p) for p in parameters(several)], several(THREE)
    tensors = load_file(str(tmp_path / "adapter_model.safetensors"))
    del tensors[next(iter(tensors))]
    save_file(tensors, str(tmp_path / "adapter_model.safetensors"))
    with pytest.raises(UserError, match="is missing"):
        load_adapter(several, tmp_path, "f")
    assert in_order(several) == ["a", "b"]
    assert [id(p) for p in parameters(several)] == trained
    assert torch.equal(several(THREE), expected)


def test_a_whole_copy_leaves_what_is_on_in_front_of_it(any_tiny):
    attach(any_tiny, "lora+bitfit", name="first", lora={"r": 2})
    randomise(any_tiny)
    expected = any_tiny(THREE)
    site = {"llama": "q", "opt": "q", "gptj": "q", "bloom": "qkv"}[any_tiny.family]
    attach(any_tiny, resolve(kind="full", sites=[site]), "second")
    attach(any_tiny, "ln-tuning", name="third")
    attach(any_tiny, "ln-tuning", name="fourth")
    assert torch.equal(any_tiny(THREE), expected)


def test_rows_at_the_head_are_not_trained(tiny):
    attach(tiny, "invertible", name="inv")
    use(tiny, [Rows("inv", None)])
    with pytest.raises(UserError, match="picks tokens out of their rows"):
        summed_loss(tiny, IDS, torch.ones(IDS.shape))
