"""Several adapters at once: stacked, averaged, fused, by row, added and subtracted, and saved as
they are.
"""

import pytest
import torch
from composed import (
    THREE,
    out,
    several,  # noqa: F401
)
from methods import ALONE, IN_TURN, attach_small, randomise

from adapters import (
    Average,
    Rows,
    attach,
    combine,
    load_adapters,
    parameters,
    remove,
    save_adapters,
    use,
)
from adapters.attach import adapter_names, adapters_named, in_order
from adapters.places import all_sites
from eval.generate import generate
from model import load_model


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


@pytest.mark.parametrize("method", sorted({method for _, method in IN_TURN} & {*ALONE}))
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
    with torch.no_grad():  # as in `out`: with gradients, attention to few queries is another kernel
        assert torch.equal(again(THREE), expected)
    torch.testing.assert_close(again(THREE), expected, rtol=0, atol=1e-5)
    use(several, [Rows("a", None, "l")])
    expected = several(THREE)
    save_adapters(several, tmp_path / "rows")
    again = load_model(str(several.folder))
    load_adapters(again, tmp_path / "rows")
    assert torch.equal(again(THREE), expected)
