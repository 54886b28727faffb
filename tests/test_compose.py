"""Several adapters at once: stacked, averaged, fused, by row, added and subtracted, and saved as
they are.
"""

import json

import pytest
import torch
from methods import ALONE, IDS, attach_small, randomise
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
from adapters.places import all_sites
from eval.generate import generate
from model import UserError, load_model
from train.loss import summed_loss

THREE = torch.cat((IDS, IDS[:1].flip(1)))


@pytest.fixture
def several(any_tiny):
    """A model with bottlenecks a, b, c (c of a's shape), LoRAs l, m, prefixes p, q and a soft
    prompt s.
    """
    for name, preset, changes in (
        ("a", "parallel", {"size": 3}),
        ("b", "parallel", {"size": 4, "scale": 2.0}),
        ("c", "parallel", {"size": 3}),
        ("l", "lora", {"r": 2, "dropout": 0.0}),
        ("m", "adalora", {"init_r": 3, "target_r": 2}),
        ("p", "prefix", {"length": 3}),
        ("q", "prefix", {"length": 3}),
        ("s", "prompt", {"length": 2}),
    ):
        attach(any_tiny, preset, name=name, **changes)
    randomise(any_tiny, 0.1)
    return any_tiny


@torch.no_grad()
def out(model, *entries, ids=THREE):
    use(model, list(entries))
    return model(ids)


def test_stacked_adapters_apply_in_the_order_they_are_used(tiny):
    attach(tiny, "series", name="one", size=4)
    attach(tiny, "series", name="two", size=4)
    randomise(tiny)
    site = tiny.blocks[0].mlp_site
    one, two = site.adapters["one"], site.adapters["two"]
    y = torch.randn(1, 3, 32)
    use(tiny, ["two", "one"])
    torch.testing.assert_close(site(y, y), one.after(two.after(y, y, site), y, site))
    assert in_order(tiny) == ["two", "one"]


def test_an_average_is_of_what_the_adapters_add(several):
    a, c = (adapters_named(several, name) for name in "ac")
    use(several, [Average("a", "c", weights=[0.7, -0.2])])
    for path, site in all_sites(several):
        if "a" in site.adapters:
            x, y = torch.randn(1, 2, site.in_features), torch.randn(1, 2, site.out_features)
            torch.testing.assert_close(
                site.after(y, x),
                y + 0.7 * (a[path].after(y, x, site) - y) - 0.2 * (c[path].after(y, x, site) - y),
            )
    torch.testing.assert_close(out(several, Average("a", weights=[1.0])), out(several, "a"))
    torch.testing.assert_close(out(several, Average("a", weights=[0.0])), out(several))
    assert Average("a", "b").weights == [0.5, 0.5]


def test_outputs_added_in_one_adapter_are_the_average_while_it_runs(several):
    for weights in (
        {"a": 0.7, "b": -0.3},
        {"a": 1.0, "b": 1.0, "c": -1.0},
        {"l": 0.5, "m": -2.0},
        {"m": 0.5},
    ):
        expected = out(several, Average(*weights, weights=list(weights.values())))
        config = combine(several, weights, "sum")
        assert config.kind in ("bottleneck", "lora")
        torch.testing.assert_close(out(several, "sum"), expected, rtol=1e-4, atol=1e-4)
        remove(several, "sum")
    both = combine(several, {"a": 1.0, "c": 1.0}, "tidy")
    assert (both.only.sites, both.only.overrides) == (("attn", "mlp"), {})


def test_an_adapter_subtracted_from_itself_is_the_base(several):
    base = out(several)
    combine(several, {"a": 1.0}, "copy")
    combine(several, {"a": 1.0, "copy": -1.0}, "nothing")
    torch.testing.assert_close(out(several, "nothing"), base, rtol=1e-4, atol=1e-4)
    combine(several, {"l": -1.0}, "negated")
    torch.testing.assert_close(out(several, "l", "negated"), base, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ALONE)
def test_weights_added(tiny, method):
    """1 x an adapter is the adapter, 0 x is what changes nothing where the method has that,
    halves of two are their mean.
    """
    for name, seed in (("one", 0), ("two", 1)):
        torch.manual_seed(seed)
        attach_small(tiny, method, as_name=name)
    randomise(tiny, 0.1)
    combine(tiny, {"one": 1.0}, "same", how="weights")
    torch.testing.assert_close(out(tiny, "same"), out(tiny, "one"))
    combine(tiny, {"one": 0.5, "two": 0.5}, "mean", how="weights")
    one, two, mean = (
        {path: one.state_dict() for path, one in adapters_named(tiny, name).items()}
        for name in ("one", "two", "mean")
    )
    for path, tensors in mean.items():
        for leaf, tensor in tensors.items():
            expected = (one[path][leaf] + two[path][leaf]) / 2
            torch.testing.assert_close(
                tensor, expected, check_dtype=False
            )  # places are whole numbers
    if all(adapter.starts_at_base for adapter in adapters_named(tiny, "one").values()):
        combine(tiny, {"one": 0.0}, "none", how="weights")
        torch.testing.assert_close(out(tiny, "none"), out(tiny), rtol=1e-5, atol=1e-5)


def test_a_learned_scale_is_added_from_its_start(tiny):
    """Task arithmetic adds what training changed: a scale that started at 1 goes from 1.2 to
    1 + 0.5 x 0.2, not to 0.5 x 1.2; matrices start at their zero."""
    attach(tiny, "parallel", name="one", scale="learned")
    with torch.no_grad():
        for adapter in adapters_named(tiny, "one").values():
            adapter.adapter_scaling.fill_(1.2)
    for weight in (0.5, 2.0, -1.0, 0.0):
        name = f"times{str(weight).replace('.', '_').replace('-', 'm')}"
        combine(tiny, {"one": weight}, name, how="weights")
        for path, adapter in adapters_named(tiny, name).items():
            assert adapter.adapter_scaling.item() == pytest.approx(1 + 0.2 * weight)
            one = adapters_named(tiny, "one")[path].adapter_down
            torch.testing.assert_close(adapter.adapter_down, weight * one)


def test_rows_have_adapters_of_their_own(several):
    for rows in (("a", None, "l"), ("b", "b", "a"), ("p", "q", "p"), ("s", "s", "s")):
        whole = out(several, Rows(*rows))
        for row, name in enumerate(rows):
            alone = out(several, *([name] if name else []), ids=THREE[row : row + 1])
            torch.testing.assert_close(whole[row : row + 1], alone, rtol=1e-4, atol=1e-4)


def test_rows_keep_their_adapters_in_generation(several):
    """Finished rows leave the batch, but not where that would move the others' adapters."""
    rows = ("a", "b", "l", None)
    prompts = torch.cat((THREE, THREE[:1]))

    def alone(stop):
        found = []
        for row, name in enumerate(rows):
            use(several, [name] if name else [])
            found.append(
                generate(several, prompts[row : row + 1], max_new_tokens=8, stop_ids=stop)[0]
            )
        return found

    stop = [tokens[1] for tokens in alone([])[:2]]  # ends rows 0 and 1 early, half of the batch
    expected = alone(stop)
    if several.family in ("llama", "opt"):  # the other tiny models repeat themselves
        assert max(map(len, expected)) > 3
    use(several, [Rows(*rows)])
    assert generate(several, prompts, max_new_tokens=8, stop_ids=stop) == expected


def test_rows_are_trained_together(several):
    use(several, [Rows("a", "c", None)])
    several(THREE)[0].square().mean().backward()
    for name, moved in (("a", True), ("c", False)):
        gradients = [
            p.grad for one in adapters_named(several, name).values() for p in one.parameters()
        ]
        assert all((g is not None and bool(g.abs().max() > 0)) == moved for g in gradients)


def test_what_is_on_is_trained_or_what_is_named(several):
    use(several, ["a", "l"], train=["l"])
    trained = {id(p) for p in parameters(several)}
    assert trained == {
        id(p) for one in adapters_named(several, "l").values() for p in one.parameters()
    }
    several(THREE).square().mean().backward()
    assert all(
        p.grad is None for one in adapters_named(several, "a").values() for p in one.parameters()
    )
    use(several, ["a"])
    assert {id(p) for p in parameters(several)} == {
        id(p) for one in adapters_named(several, "a").values() for p in one.parameters()
    }


def test_all_of_it_is_saved_and_restored(several, tmp_path):
    attach(several, "fusion", name="f", of=["a", "b"])
    randomise(several, 0.1)
    expected = out(several, "s", "l", "f", Average("a", "c", weights=[0.25, 0.5]))
    save_adapters(several, tmp_path / "all", run={"template": "plain"})
    again = load_model(str(several.folder))
    assert load_adapters(again, tmp_path / "all") == {"template": "plain"}
    assert adapter_names(again)
    assert torch.equal(again(THREE), expected)
    use(several, [Rows("a", None, "l")])
    expected = several(THREE)
    save_adapters(several, tmp_path / "rows")
    again = load_model(str(several.folder))
    load_adapters(again, tmp_path / "rows")
    assert torch.equal(again(THREE), expected)


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
