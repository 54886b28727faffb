"""Adapter files that we write for PEFT, read by the live library: logits and gradients."""

import json
import re

import pytest
from families import batch, crossed, difference
from peft_bases import (
    ALL,
    FAMILIES,
    bases,  # noqa: F401
    compare,
    differs_from_base,
    generates_as_in_one_pass,
    loaded_by_peft,
    run_theirs,
    theirs_from,
)
from peft_rows import NO_BIAS, OURS, ours_with
from safetensors.torch import load_file

from adapters import attach, load_adapter, save_adapter
from adapters.attach import adapters_named
from adapters.config import resolve
from adapters.formats.folders import CONFIG, WEIGHTS
from model import UserError, load_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LoRA tensor.*have invalid shape:UserWarning"
)  # PEFT, about its own biases of B
IN_EVERY_FAMILY = (
    *("all-linear", "head", "embedding and norm saved"),
    *("whole MLPs saved", "bias all", "embedding", "tokens", "ia3"),
    *("ln tuning", "prefix", "ln-tuning"),
    *("lora on the embedding", "lora with overrides"),
)


@pytest.mark.parametrize(("family", "row"), crossed(OURS, IN_EVERY_FAMILY))
def test_peft_computes_what_we_saved(bases, tmp_path, family, row):
    folder, base = bases[family]
    table, kind, as_it_is = OURS[row]
    if row in NO_BIAS and family in ("llama", "gptj"):
        pytest.skip("the Linears of this family have no biases")
    ours = ours_with(folder, family, table)
    differs_from_base(ours)
    soft = kind in ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")
    same_parameters = (as_it_is and not soft) or row in (
        *NO_BIAS,
        "lora and the head",
        "lora and rows",
    )
    save_adapter(ours, tmp_path / "peft", format="peft")
    written = json.loads((tmp_path / "peft" / CONFIG).read_text())
    assert written["peft_type"] == kind
    assert "llm_adapters" not in written
    compare(ours, loaded_by_peft(base, tmp_path / "peft"), gradients=same_parameters, soft=soft)
    save_adapter(ours, tmp_path / "native")
    written = json.loads((tmp_path / "native" / CONFIG).read_text())
    assert (written["peft_type"] == kind) == as_it_is
    if as_it_is:
        ours.zero_grad()
        compare(
            ours, loaded_by_peft(base, tmp_path / "native"), gradients=same_parameters, soft=soft
        )
    for form in ("native", "peft"):  # and so do we again
        again = load_model(str(folder))
        load_adapter(again, tmp_path / form)
        ids, mask = batch("left")
        assert difference(again(ids, mask).detach(), ours(ids, mask).detach(), mask) < 1e-4
    if soft:
        generates_as_in_one_pass(again)


PLAIN = [
    row
    for row in OURS
    if row.startswith(("lora", "rslora", "pissa", "adalora", "vera"))
    and " and " not in row
    and "bias" not in row
]


@pytest.mark.parametrize("row", PLAIN)
def test_a_plain_lora_is_right_for_who_knows_only_alpha_and_r(bases, tmp_path, row):
    family = FAMILIES[PLAIN.index(row) % 4]
    folder, base = bases[family]
    ours = ours_with(folder, family, OURS[row][0])
    save_adapter(ours, tmp_path, format="peft", plain=True)
    fields, tensors = json.loads((tmp_path / CONFIG).read_text()), load_file(tmp_path / WEIGHTS)
    assert fields["lora_alpha"] == fields["r"]
    assert not any(
        key.endswith("_pattern") or key.startswith("use_")
        for key, value in fields.items()
        if value and key != "layers_pattern"
    )
    assert all(
        fields["r"] == (len(tensor) if "_A" in key else tensor.shape[1])
        for key, tensor in tensors.items()
    )
    assert all(re.search(r"\.(lora_[AB]\.weight|lora_embedding_[AB])$", key) for key in tensors)
    compare(ours, loaded_by_peft(base, tmp_path), gradients=False)


@pytest.mark.parametrize(
    ("table", "plain", "says"),
    [
        ({"preset": "series", "size": 3}, False, "PEFT has no place for bottleneck"),
        ({"preset": "mam"}, False, "PEFT has no place for bottleneck beside prefix"),
        ({"preset": "unipelt"}, False, "PEFT has no place for prefix [+] lora [+] bottleneck"),
        ({"preset": "bitfit"}, False, "PEFT has no place for bitfit"),
        ({"preset": "invertible"}, False, "PEFT has no place for invertible"),
        ({"preset": "lora", "gate": True}, False, "PEFT has no place for that"),
        ({"preset": "prefix", "layers": "first 2"}, False, "prefix in some of the layers"),
        ({"kind": "full", "sites": ["head"]}, False, "PEFT has no place for full"),
        (
            {"one": {"preset": "lora"}, "two": {"preset": "lora", "sites": ["o"]}},
            False,
            "PEFT has no place for lora",
        ),
        (
            {"one": {"preset": "lora"}, "biases": {"kind": "bitfit", "sites": ["q"]}},
            False,
            "biases of all modules",
        ),
        (
            {"biases": {"kind": "bitfit", "sites": ["q", "v"]}, "one": {"preset": "dora"}},
            False,
            "PEFT does not scale the trained biases beside DoRA",
        ),
        (
            {"one": {"preset": "lora"}, "full": {"kind": "full", "sites": ["q"]}},
            False,
            r"no place for full and lora at one module \(model.layers.0",
        ),
        (
            {"one": {"preset": "lora"}, "full": {"kind": "full", "sites": ["head"]}},
            True,
            "plain LoRA has no place for full",
        ),
        (
            {"kind": "lora", "sites": ["embed", "q"], "overrides": {"q": {"bias": True}}},
            False,
            "biases of B beside a LoRA on the embedding",
        ),
        ({"preset": "dora"}, True, "DoRA changes the length"),
        ({"preset": "ia3"}, True, "no product of two matrices"),
        ({"preset": "prompt"}, True, "no product of two matrices"),
        ({"preset": "lora-bias"}, True, "no place for the biases of B"),
        ({"preset": "lora", "gate": True}, True, "PEFT has no place for that"),
    ],
    ids=str,
)
def test_what_peft_has_no_place_for_is_said_and_nothing_is_written(
    tiny, tmp_path, table, plain, says
):
    attach(tiny, resolve(**table))
    with pytest.raises(UserError, match=says) as error:
        save_adapter(tiny, tmp_path / "out", format="peft", plain=plain)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    save_adapter(tiny, tmp_path / "native")
    fields = json.loads((tmp_path / "native" / CONFIG).read_text())
    assert plain or fields["peft_type"] not in (
        "LORA",
        "PREFIX_TUNING",
    )  # so that PEFT does not read what it cannot compute


def test_a_bottleneck_says_what_each_module_has(tiny, tmp_path):
    attach(tiny, "paper-series-h", size=3, layers=[1])
    save_adapter(tiny, tmp_path)
    fields = json.loads((tmp_path / CONFIG).read_text())
    assert fields["peft_type"] == "BOTTLENECK"
    assert fields["bottleneck_size"] == 3
    assert fields["modules"] == {
        "model.layers.1.mlp.gate_proj": "mh_adapter",
        "model.layers.1.mlp.up_proj": "mh_adapter",
        "model.layers.1.mlp.down_proj": "output_adapter",
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_adalora_whose_ranks_peft_has_cut(bases, tmp_path, family):
    import peft

    folder, base = bases[family]
    options = {
        "init_r": 5,
        "target_r": 2,
        "lora_alpha": 9,
        "total_step": 8,
        "tinit": 1,
        "tfinal": 2,
        "deltaT": 1,
        "target_modules": ALL[family],
    }
    theirs = theirs_from(base, peft.AdaLoraConfig(task_type="CAUSAL_LM", **options))
    ids, mask = batch("left")
    for step in range(1, 8):
        run_theirs(theirs, ids, mask, soft=False)[mask.bool()].square().mean().backward()
        theirs.base_model.update_and_allocate(step)
    theirs.zero_grad()
    theirs.save_pretrained(tmp_path)
    shapes = {
        tensor.shape[0]
        for key, tensor in load_file(tmp_path / WEIGHTS).items()
        if key.endswith("lora_E")
    }
    assert len(shapes) > 1  # it did cut
    ours = load_model(str(folder))
    load_adapter(ours, tmp_path)
    adapters = adapters_named(ours, "default")
    assert all(one.lora_A.shape[0] == 5 for one in adapters.values())
    compare(ours, theirs, gradients=False)
    compare(ours, loaded_by_peft(base, tmp_path), gradients=False)
    save_adapter(ours, tmp_path / "again", format="peft")
    compare(ours, loaded_by_peft(base, tmp_path / "again"), gradients=False)
    fields = json.loads((tmp_path / CONFIG).read_text())
    name, masked = next(iter(fields["rank_pattern"].items()))
    for wrong, says in (
        (masked[1:], "should be init_r = 5 times"),
        (3, "should be init_r = 5 times"),
        ([not one for one in masked], "leaves a rank of"),
    ):
        (tmp_path / CONFIG).write_text(json.dumps(fields | {"rank_pattern": {name: wrong}}))
        with pytest.raises(UserError, match=says):
            load_adapter(load_model(str(folder)), tmp_path)
