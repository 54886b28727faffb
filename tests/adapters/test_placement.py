"""Where adapters sit: layers, sizes and rates by place, mixtures, tables by family."""

import pytest
import torch
from conftest import write_checkpoint
from methods import SIZES, randomise

from adapters import attach, parameters, remove
from adapters.attach import adapters_named
from adapters.config import METHODS, presets, resolve
from adapters.in_use import rates
from adapters.parts import layer_numbers
from adapters.places import all_sites, named_sites
from adapters.show import trained
from model import UserError, load_model


def test_a_site_that_does_not_fit_is_refused_with_the_list_of_those_that_do(any_tiny):
    """Every method at every kind of site: it works, or says where it would."""
    by_kind = {site.kind: name for name, site in reversed(named_sites(any_tiny).items())}
    assert len(by_kind) == 6
    for kind, method in METHODS.items():
        for place, site in by_kind.items():
            table = {
                "kind": kind,
                "sites": [site],
                **SIZES.get(kind, {}),
                **({"of": ["a", "b"]} if kind == "fusion" else {}),
                **({"ids": [1]} if kind == "token_rows" else {}),
            }
            if place in method.works_on and kind not in ("fusion", "token_rows"):
                attach(any_tiny, resolve(**table), "fits")
                remove(any_tiny, "fits")
            elif place not in method.works_on:
                with pytest.raises(
                    UserError, match=rf"{kind} works on .*\) is .*{place}; choose from "
                ) as error:
                    attach(any_tiny, resolve(**table))
                assert all(
                    named_sites(any_tiny)[name].kind in method.works_on
                    for name in str(error.value).partition("choose from ")[2].split(", ")
                )


def test_parameter_counts_follow_the_shapes(tiny):
    attach(tiny, "lora", r=2, sites=["q", "v"], layers="last 2")
    q, v = 2 * (32 + 32), 2 * (32 + 16)  # two key/value heads of four
    assert sum(p.numel() for p in parameters(tiny)) == trained(tiny) == 2 * (q + v)
    attach(tiny, "prefix", name="kv_pairs", length=5)
    assert trained(tiny, "kv_pairs") == 3 * 2 * 5 * 16


def test_layers():
    assert layer_numbers("all", 4) == [0, 1, 2, 3]
    assert layer_numbers("first 2", 4) == [0, 1]
    assert layer_numbers("last 1", 4) == [3]
    assert layer_numbers((0, 3), 4) == [0, 3]
    for wrong in ("first 9", "last 0", "some", (4,), (), (-1,)):
        with pytest.raises(UserError, match="layers"):
            layer_numbers(wrong, 4)


def test_sizes_by_layer_by_reduction_and_by_place(tiny):
    attach(tiny, "series", size=[2, 4], layers=[0, 2], name="layers")
    assert [
        site.adapters["layers"].adapter_down.shape[0]
        for path, site in all_sites(tiny)
        if "layers" in site.adapters
    ] == [2, 2, 4, 4]
    attach(tiny, "parallel", sites=["attn", "down"], reduction=16, name="reduced")
    assert tiny.blocks[0].attn_site.adapters["reduced"].adapter_down.shape == (2, 32)
    assert tiny.blocks[0].mlp.down_proj.adapters["reduced"].adapter_down.shape == (3, 48)
    overrides = {"layers.0.self_attn.q_proj": {"r": 7}, "q": {"r": 5, "alpha": 1.0}}
    attach(tiny, "lora", r=2, overrides=overrides, name="placed")
    ranks = [adapter.lora_A.shape[0] for adapter in adapters_named(tiny, "placed").values()]
    assert ranks == [7, 2, 5, 2, 5, 2]
    assert (
        tiny.blocks[0].self_attn.q_proj.adapters["placed"].scale == 1 / 7
    )  # the first override that fits counts, for each option
    for sizes in ([2, 3], [2, 3, 4, 5]):
        with pytest.raises(UserError, match="values"):
            attach(tiny, "series", size=sizes, name="wrong")


def test_a_mixture_meets_at_one_site(tiny):
    table = {
        "low": {"preset": "lora", "r": 2, "sites": ["q"]},
        "bias": {"preset": "bitfit", "sites": ["q"]},
        "soft": {"preset": "prompt", "length": 2},
    }
    attach(tiny, resolve(**table))
    randomise(tiny)
    q, x = tiny.blocks[0].self_attn.q_proj, torch.randn(1, 3, 32)
    group = q.adapters["default"]
    low, bias = group.parts["low"], group.parts["bias"]
    torch.testing.assert_close(
        q(x), x @ q.weight.T + 8 * x @ low.lora_A.T @ low.lora_B.T + bias.bias
    )
    assert len(parameters(tiny)) == 3 * (2 + 1) + 1
    assert resolve(**resolve(**table).table()) == resolve(**table)


def test_several_presets_are_a_mixture_too(tiny):
    config = attach(tiny, "lora+prefix", lora={"r": 2}, prefix={"length": 3})
    assert [(name, part.kind) for name, part in config.parts.items()] == [
        ("lora", "lora"),
        ("prefix", "prefix"),
    ]
    assert tiny.blocks[0].self_attn.q_proj.adapters["default"].options.r == 2
    for preset, changes, said in (
        ("lora+lora", {}, "twice"),
        ("lora+lara", {}, "did you mean 'lora'"),
        ("mam", {"size": 4}, "parallel.size|prefix.size"),
        ("mam+lora", {}, "mixture"),
    ):
        with pytest.raises(UserError, match=said):
            attach(tiny, preset, name="wrong", **changes)


def test_rates_of_parts(tiny):
    attach(tiny, "lora+prefix", prefix={"rate": 10.0})
    assert {("prefix" in name, rate) for name, rate in rates(tiny).items()} == {
        (True, 10.0),
        (False, 1.0),
    }


def test_a_table_gives_its_configuration_back():
    for name in presets():
        if name != "fusion":
            config = resolve(name)
            assert resolve(**config.table()) == config
    config = resolve("parallel", size=[7, 3], layers=[0, 2])
    assert resolve(None, **config.table()) == config


def test_sites_by_family(tmp_path):
    """BLOOM has one Linear for q, k and v: presets say so, a table without the family's sites
    falls back to `any`.
    """
    bloom = load_model(str(write_checkpoint(tmp_path / "bloom", "bloom")))
    assert attach(bloom, "lora", r=2).only.sites == ("qkv",)
    assert attach(
        load_model(str(write_checkpoint(tmp_path / "opt", "opt"))), "lora", r=2
    ).only.sites == ("q", "v")
    with pytest.raises(UserError, match="unknown site of bloom 'q'"):
        attach(bloom, "lora", name="other", sites=["q"])
    config = resolve("lora", sites={"any": ["o"], "opt": ["q", "up"]})
    assert resolve(None, **config.table()) == config
    assert (config.on("opt").only.sites, config.on("gptj").only.sites) == (("q", "up"), ("o",))
    for sites, said in (
        ({"opt": ["q"]}, "no 'any'"),
        ({"any": ["q"], "opd": ["q"]}, "did you mean 'opt'"),
        ({"any": "q"}, "should be a list of texts"),
    ):
        with pytest.raises(UserError, match=said):
            resolve("lora", sites=sites)
