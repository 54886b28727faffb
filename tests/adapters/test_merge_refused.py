"""What cannot be merged says why, and changes nothing."""

import pytest
import torch
from conftest import write_checkpoint
from merged import (
    apart,
    seeded,  # noqa: F401
)
from methods import ALL, IDS, MERGEABLE, attach_small, randomise

from adapters import Rows, attach, merge, use
from adapters.attach import adapter_names
from adapters.config import resolve
from adapters.formats.merged_model import export_model
from adapters.merge import merge_and_compare
from adapters.places import all_sites
from model import UserError, load_model


@pytest.mark.parametrize(
    ("family", "changes", "table", "place"),
    [
        ("gptj", {}, {"kind": "bitfit", "sites": ["q"]}, "transformer.h.0.attn.q_proj.bias"),
        ("gptj", {}, {"preset": "lora-bias"}, "transformer.h.0.attn.q_proj.bias"),
        ("llama", {}, {"kind": "bitfit", "sites": ["head"]}, "lm_head.bias"),
        ("bloom", {}, {"kind": "bitfit", "sites": ["head"]}, "lm_head.bias"),
        ("opt", {}, {"kind": "bitfit", "sites": ["head"]}, "lm_head.bias"),
        (
            "opt",
            {"word_embed_proj_dim": 20},
            {"kind": "bitfit", "sites": ["model.decoder.project_in"]},
            "model.decoder.project_in.bias",
        ),
    ],
)
def test_a_bias_without_a_place_in_the_architecture_is_merged_and_not_exported(
    tmp_path, family, changes, table, place
):
    model = load_model(str(write_checkpoint(tmp_path / "base", family, **changes)))
    attach(model, resolve(**table))
    randomise(model)
    before = model(IDS)
    merge(model)
    assert apart(model(IDS), before) < 1e-4
    with pytest.raises(UserError, match=f"{family} architecture has no place for {place}"):
        export_model(model, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


# ---------------------------------------------------------------- what cannot be merged
def state(model) -> dict[str, torch.Tensor]:
    return {name: parameter.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("method", [name for name in ALL if name not in (*MERGEABLE, "bitfit")])
def test_what_cannot_be_merged_says_why_and_changes_nothing(any_tiny, method):
    attach(any_tiny, "ia3", name="first")
    attach_small(any_tiny, method, as_name="bent")
    randomise(any_tiny)
    use(any_tiny, ["first", "bent"])
    before, logits, old = state(any_tiny), any_tiny(IDS), any_tiny.fingerprint
    with pytest.raises(
        UserError,
        match=r"'bent' \(.*\) at .* cannot be merged: .*; evaluate and generate use it unmerged",
    ) as error:
        merge(any_tiny)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be merged"):
        merge_and_compare(any_tiny, IDS[:1])
    after = state(any_tiny)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(any_tiny(IDS), logits)
    assert any_tiny.fingerprint == old


def test_more_that_cannot_be_merged(tiny):
    attach(tiny, "lora", name="gated", r=2, gate=True)
    with pytest.raises(
        UserError,
        match=(
            r"'gated' \(lora\) at model.layers.0.self_attn.q_proj cannot be "
            r"merged: its gate depends on the token; evaluate"
        ),
    ):
        merge(tiny)
    use(tiny, [])
    attach(tiny, "bitfit", name="norm", sites=["attn_norm"])
    with pytest.raises(UserError, match="this norm has no bias, and cannot get one"):
        merge(tiny)
    attach(tiny, "lora", name="one", r=2)
    attach(tiny, "lora", name="two", r=2)
    use(tiny, [Rows("one", "two")])
    with pytest.raises(
        UserError,
        match=(
            r"'one' \(lora\) and 'two' \(lora\) at .*: each row of a batch has an "
            r"adapter of its own"
        ),
    ):
        merge(tiny)
    attach(tiny, "fusion", name="both", of=["one", "two"], sites=["q", "v"])
    use(tiny, ["one"])
    with pytest.raises(
        UserError, match="'both' is built on 'one', which would be merged: remove it first"
    ):
        merge(tiny)
    assert set(adapter_names(tiny)) == {"gated", "norm", "one", "two", "both"}


def test_weights_that_would_not_be_finite(folder):
    model = load_model(str(folder), dtype=torch.float16)
    attach(model, "lora", r=1, sites=["q", "v"])
    for _, site in all_sites(model):
        for adapter in site.adapters.values():
            adapter.lora_B.data.fill_(1e6)
    before = state(model)
    with pytest.raises(
        UserError,
        match=(
            r"model.layers.0.self_attn.q_proj would hold NaN or infinite values, "
            r"as torch.float16"
        ),
    ):
        merge(model)
    assert all(torch.equal(before[name], value) for name, value in state(model).items())
