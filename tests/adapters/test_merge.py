"""Merging: what is folded computes the same, and what cannot be folded says so; exported folders
are read by transformers, to the same logits.
"""

import copy
import functools
import json
from itertools import product

import pytest
import torch
from conftest import write_checkpoint
from families import crossed
from merged import (
    apart,
    merged_and_exported,
    seeded,  # noqa: F401
)
from methods import IDS, MERGEABLE, attach_small, randomise

from adapters import Average, attach, load_adapter, merge, save_adapter, use
from adapters.attach import adapter_names
from adapters.config import resolve
from adapters.formats.merged_model import export_model
from adapters.places import all_sites
from model import UserError, load_model

SITES_DIFFER = ("lora everywhere", "ia3", "full embedding and norm", "lora on the embedding")
FOLDED = crossed([name for name in MERGEABLE if name != "token rows"], SITES_DIFFER)


@pytest.mark.parametrize(("family", "row"), FOLDED)
def test_what_is_merged_is_read_by_transformers(loaded, tmp_path, family, row):
    model = loaded(family)
    attach_small(model, row)
    randomise(model)
    old = model.fingerprint
    merged_and_exported(model, tmp_path / "merged")
    assert model.fingerprint != old


@pytest.mark.parametrize("method", ["bitfit", "lora-bias"])
@pytest.mark.parametrize(
    ("family", "changes", "settings"),
    [
        ("llama", {}, ["attention_bias", "mlp_bias"]),
        ("llama", {"attention_bias": True}, ["attention_bias", "mlp_bias"]),
        (
            "llama",
            {"mlp_bias": True, "tie_word_embeddings": True},
            ["attention_bias", "mlp_bias", "tie_word_embeddings"],
        ),
        ("bloom", {}, []),
        ("opt", {}, []),
        ("opt", {"enable_bias": False}, ["enable_bias"]),
        (
            "opt",
            {"do_layer_norm_before": False, "word_embed_proj_dim": 20, "enable_bias": False},
            ["enable_bias", "do_layer_norm_before"],
        ),
    ],
    ids=str,
)
def test_biases_where_there_were_none(tmp_path, family, changes, settings, method):
    """A Linear gets one; config.json says so, and the Linears beside it get zeros."""
    model = load_model(str(write_checkpoint(tmp_path / "base", family, **changes)))
    attach_small(model, method)
    randomise(model)
    merged_and_exported(model, tmp_path / "merged")
    raw = json.loads((tmp_path / "merged" / "config.json").read_text())
    if method != "bitfit" and not changes.get("mlp_bias"):
        settings = [key for key in settings if key != "mlp_bias"]
    before = json.loads((tmp_path / "base" / "config.json").read_text())
    assert {key for key in raw if raw[key] is True} - {
        key for key in before if before[key] is True
    } <= set(settings)
    assert all(
        raw.get(key, False) == before.get(key, False)
        for key in raw
        if key not in (*settings, "architectures")
    )


def test_only_the_biases_that_are_needed(tiny, tmp_path):
    attach(tiny, "bitfit", sites=["up"], layers=[1])
    randomise(tiny)
    merged_and_exported(tiny, tmp_path / "merged")
    raw = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (raw.get("attention_bias"), raw["mlp_bias"]) == (None, True)
    biases = {
        name: p
        for name, p in load_model(str(tmp_path / "merged")).named_parameters()
        if name.endswith(".bias")
    }
    assert len(biases) == 9
    assert [name for name, bias in biases.items() if bias.any()] == [
        "model.layers.1.mlp.up_proj.bias"
    ]


# ---------------------------------------------------------------- several adapters
STEPS = {
    "lora": {"kind": "lora", "r": 2},
    "lora-bias": {"kind": "lora", "r": 2, "bias": True},
    "dora": {"kind": "dora", "r": 2},
    "vera": {"kind": "vera", "r": 3},
    "ia3": {"kind": "ia3"},
    "ia3 in": {"kind": "ia3", "scales": "input"},
    "oft": {"kind": "oft", "block": 8},
    "bitfit": {"kind": "bitfit"},
    "full": {"kind": "full"},
}


def refused(first: str, second: str, bias: bool) -> bool:
    """Whether the second looks at something of the base that the first has changed."""
    changes_bias = first in ("lora-bias", "bitfit", "full") or (bias and first == "ia3")
    if first == "full" and not bias:
        changes_bias = False
    return (second == "dora" and first not in ("ia3 in", "oft")) or (
        second == "bitfit" and changes_bias
    )


PAIRS = [  # with a bias in the base; without one only where an adapter makes or needs a bias
    (first, second, bias)
    for first, second in product(STEPS, STEPS)
    for bias in (True, False)
    if bias or {first, second} & {"bitfit", "lora-bias", "full"}
]


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory):
    """Whether the MLP has biases -> a copy of a tiny LLaMA of one layer."""

    @functools.cache
    def load(bias: bool):
        folder = tmp_path_factory.mktemp("one")
        return load_model(str(write_checkpoint(folder, num_hidden_layers=1, mlp_bias=bias)))

    return lambda bias: copy.deepcopy(load(bias))


@pytest.mark.parametrize(("first", "second", "bias"), PAIRS)
def test_two_at_one_linear_in_either_order_compute_the_same_or_are_refused(
    one_layer, first, second, bias
):
    """Stacked, and as a mixture."""
    tables = {"one": STEPS[first] | {"sites": ["down"]}, "two": STEPS[second] | {"sites": ["down"]}}
    stacked, mixture = one_layer(bias), one_layer(bias)
    for name, table in tables.items():
        attach(stacked, resolve(**table), name)
    attach(mixture, resolve(**tables))
    for model in (stacked, mixture):
        randomise(model)
        before = model(IDS)
        if refused(first, second, bias):
            with pytest.raises(
                UserError,
                match=(
                    r"starts from the base's (weight|bias), which another adapter in "
                    r"front of it has changed; apply it first"
                ),
            ):
                merge(model)
            assert torch.equal(model(IDS), before)
        else:
            merge(model)
            assert apart(model(IDS), before) < 1e-4


@pytest.mark.parametrize(
    ("first", "second", "bias"), [pair for pair in PAIRS if pair[0] <= pair[1]]
)
def test_averages_are_folded(one_layer, first, second, bias):
    """Behind another adapter, whose changes all members see."""
    model = one_layer(bias)
    attach(model, resolve(**STEPS[first], sites=["down"]), "one")
    attach(model, resolve(**STEPS[second], sites=["down"]), "two")
    attach(model, "ia3", name="three", sites=["down"])
    attach(model, "ln-tuning", name="norms", sites=["final_norm"])
    randomise(model)
    use(model, [Average("one", "two", weights=[0.7, -0.4]), "three", "norms"])
    before = model(IDS)
    merge(model)
    assert apart(model(IDS), before) < 1e-4
    assert adapter_names(model) == []


def test_averages_on_norms_and_embeddings(any_tiny):
    attach(any_tiny, resolve(kind="full", sites=["embed", "final_norm"]), "one")
    attach(any_tiny, "lora", name="two", sites=["embed"], r=2, dropout=0.0)
    randomise(any_tiny)
    use(any_tiny, [Average("one", "two", weights=[0.5, 0.25])])
    before = any_tiny(IDS)
    merge(any_tiny)
    assert apart(any_tiny(IDS), before) < 1e-4


def test_a_merged_model_is_another_base_and_keeps_what_was_off(folder, tmp_path):
    model = load_model(str(folder))
    attach(model, "parallel", name="off", size=3)
    randomise(model)
    use(model, [])
    attach(model, "lora", name="on", r=3)
    use(model, ["on"])
    randomise(model)
    before = model(IDS)
    merge(model)
    assert {name for _, site in all_sites(model) for name in site.adapters} == {"off"}
    assert apart(model(IDS), before) < 1e-4
    use(model, ["off"])
    assert apart(model(IDS), before) > 1e-2
    use(model, [])
    attach(model, "lora", name="later", r=2)
    save_adapter(model, tmp_path / "saved", name="later")
    with pytest.raises(UserError, match="another base model"):
        load_adapter(load_model(str(folder)), tmp_path / "saved")
    use(model, [])
    export_model(model, tmp_path / "merged")
    load_adapter(load_model(str(tmp_path / "merged")), tmp_path / "saved")


def test_a_merge_that_changes_nothing_is_another_base_too(tiny):
    attach(tiny, "lora", r=2)
    old = tiny.fingerprint
    merge(tiny)
    assert tiny.fingerprint != old


def test_nothing_on_changes_nothing(tiny):
    attach(tiny, "lora", r=2)
    use(tiny, [])
    old = tiny.fingerprint
    merge(tiny)
    assert tiny.fingerprint == old
    assert adapter_names(tiny) == ["default"]
