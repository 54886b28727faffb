"""The paper repository's adapter files: read into the computation its code does, written back,
and what they cannot hold refused.
"""

import json
import re

import pytest
import torch
from conftest import write_checkpoint
from families import crossed
from methods import IDS, randomise
from paper_code import ACTS, BLOOM_LORA, FIRST, LAST, QKV, make, make_merged, targeted

from adapters import attach, load_adapter, save_adapter
from adapters.attach import adapters_named
from adapters.formats.folders import read_tensors
from model import load_model

BOTTLENECKS = {  # name -> (target modules of a family, the other fields)
    "series H": (lambda f: [*FIRST[f], LAST[f]], {}),
    "series P": (lambda f: [LAST[f]], {"use_adapterp": True}),
    "series at the input": (lambda f: FIRST[f], {"scaling": 0.5, "non_linearity": "relu"}),
    "series learned": (
        lambda f: [*FIRST[f], LAST[f]],
        {"scaling": "learned", "non_linearity": "gelu"},
    ),
    "parallel": (lambda f: QKV[f], {"use_parallel_adapter": True}),
    "parallel mixed": (
        lambda f: [QKV[f][-1], LAST[f]],
        {
            "use_parallel_adapter": True,
            "scaling": 4.0,
            "non_linearity": "swish",
            "init_weights": "mam_adapter",
        },
    ),
    "parallel MLP": (
        lambda f: [*FIRST[f], LAST[f]],
        {"use_parallel_adapter": True, "scaling": "learned", "non_linearity": "linear"},
    ),
    "expression": (lambda f: rf".*\.[02]\..*({'|'.join([*FIRST[f], LAST[f]])})", {"scaling": 2}),
}
IN_EVERY_FAMILY = ("series H", "series learned", "parallel", "expression")


@pytest.mark.filterwarnings("ignore")  # of the base's name
@pytest.mark.parametrize(("any_family", "row"), crossed(BOTTLENECKS, IN_EVERY_FAMILY))
def test_bottlenecks_compute_what_the_papers_code_does_and_are_written_back(
    any_folder, tmp_path, row
):
    targets, changes = BOTTLENECKS[row]
    model, reference = load_model(str(any_folder)), load_model(str(any_folder))
    expected = make(tmp_path / "theirs", reference, target_modules=targets(model.family), **changes)
    base = model(IDS)
    load_adapter(model, tmp_path / "theirs")
    torch.testing.assert_close(model(IDS), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(IDS), base, atol=1e-2)
    assert torch.equal(model(IDS), model(IDS))

    save_adapter(model, tmp_path / "again", format="paper")
    theirs, ours = (
        json.loads((tmp_path / name / "adapter_config.json").read_text())
        for name in ("theirs", "again")
    )
    back = read_tensors(tmp_path / "again")
    assert (tmp_path / "again" / "adapter_model.bin").is_file()
    assert {key: tensor.tolist() for key, tensor in back.items()} == {
        key: tensor.tolist() for key, tensor in read_tensors(tmp_path / "theirs").items()
    }
    assert targeted(load_model(str(any_folder)), ours["target_modules"]) == targeted(
        load_model(str(any_folder)), theirs["target_modules"]
    )
    for key in (
        "bottleneck_size",
        "scaling",
        "use_parallel_adapter",
        "init_weights",
        "peft_type",
        "bias",
    ):
        assert ours[key] == theirs[key], key
    assert ACTS[ours["non_linearity"]] is ACTS[theirs["non_linearity"]]
    assert isinstance(ours["scaling"], float | str)  # the paper's code knows no whole numbers there
    assert isinstance(ours["target_modules"], list)
    again = load_model(str(any_folder))
    load_adapter(again, tmp_path / "again")
    assert torch.equal(again(IDS), model(IDS))


@pytest.mark.parametrize(
    "preset", ["paper-series-h", "paper-series-p", "paper-parallel", "paper-lora"]
)
def test_the_papers_presets_can_be_written_and_are_read_as_they_were(any_folder, tmp_path, preset):
    model, other = load_model(str(any_folder)), load_model(str(any_folder))
    config = attach(model, preset, **({"r": 3} if preset == "paper-lora" else {"size": 3}))
    randomise(model)
    save_adapter(model, tmp_path / "saved", format="paper")
    load_adapter(other, tmp_path / "saved")
    assert torch.equal(other(IDS), model(IDS))
    theirs = next(iter(adapters_named(other, "default").values())).config
    assert {**theirs.only.table(), "overrides": None} == {**config.only.table(), "overrides": None}


def test_some_layers_are_written_as_whole_paths(tiny, folder, tmp_path):
    attach(tiny, "paper-series-h", size=3, layers=[0, 2])
    randomise(tiny)
    save_adapter(tiny, tmp_path / "saved", format="paper")
    targets = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["target_modules"]
    assert targets[0] == "model.layers.0.mlp.gate_proj"
    assert len(targets) == 6
    other = load_model(str(folder))
    load_adapter(other, tmp_path / "saved")
    assert torch.equal(other(IDS), tiny(IDS))


# ---------------------------------------------------------------- LoRA
@pytest.mark.filterwarnings("ignore")
def test_blooms_lora_on_the_first_and_last_third(tmp_path):
    folder = write_checkpoint(tmp_path / "bloom", "bloom")
    model = load_model(str(folder))
    expected = make_merged(tmp_path / "theirs", load_model(str(folder)))
    base = model(IDS)
    load_adapter(model, tmp_path / "theirs")
    torch.testing.assert_close(model(IDS), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(IDS), base, atol=1e-2)
    save_adapter(model, tmp_path / "again", format="paper")
    raw = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert {key: raw[key] for key in BLOOM_LORA} == BLOOM_LORA
    back, first = read_tensors(tmp_path / "again"), read_tensors(tmp_path / "theirs")
    assert back.keys() == first.keys()
    assert all(torch.equal(back[key], first[key]) for key in first)
    eight_bit = tmp_path / "eight bit"  # files of models in 8 bits keep what their code starts with
    make_merged(eight_bit, load_model(str(folder)), fan_in_fan_out=True)
    other = load_model(str(folder))
    load_adapter(other, eight_bit)
    assert torch.equal(other(IDS), model(IDS))


OF_ITS_TIME = {  # fields around such a LoRA, of PEFT 0.2, 0.3.0.dev and later; a warning's words
    "0.3.0.dev": ({"init_lora_weights": True, "fan_in_fan_out": True}, None),
    "initialised otherwise": (
        {"init_lora_weights": "gaussian", "merge_weights": True, "revision": None},
        None,
    ),
    "null in later versions": (
        {"layers_to_transform": None, "rank_pattern": {}, "use_dora": False, "bias": None},
        None,
    ),
    "null targets": ({"target_modules": None}, None),
    "names of other models": (
        {"target_modules": ["query_key_value", "c_attn"]},
        "target_modules names 'c_attn', which this bloom model",
    ),
    "keys of other programs": (
        {"peft_type": "lora", "task": "qa", "domain": ""},
        "passed over task = 'qa': no setting of LORA",
    ),
}


@pytest.mark.parametrize("row", OF_ITS_TIME)
def test_blooms_lora_as_it_was_published(tmp_path, recwarn, row):
    changes, says = OF_ITS_TIME[row]
    folder = write_checkpoint(tmp_path / "bloom", "bloom")
    model = load_model(str(folder))
    changes = changes | {"base_model_name_or_path": str(folder)}
    expected = make_merged(tmp_path / "theirs", load_model(str(folder)), **changes)
    load_adapter(model, tmp_path / "theirs")
    torch.testing.assert_close(model(IDS), expected, rtol=1e-4, atol=1e-4)
    assert len(recwarn) == (says is not None)
    assert says is None or re.search(says, str(recwarn[0].message))


def test_bottlenecks_with_names_of_other_models_and_keys_of_other_programs(tiny, folder, tmp_path):
    targets = ["up_proj", "gate_proj", "down_proj", "dense_h_to_4h", "fc1"]
    changes = {"target_modules": targets, "reduction": 4, "base_model_name_or_path": str(folder)}
    expected = make(tmp_path / "theirs", load_model(str(folder)), **changes)
    with pytest.warns(UserWarning, match="passed over reduction = 4") as caught:
        load_adapter(tiny, tmp_path / "theirs")
    torch.testing.assert_close(tiny(IDS), expected, rtol=1e-4, atol=1e-4)
    assert len(caught) == 2
    assert "passed over reduction = 4: no setting of BOTTLENECK" in str(caught[0].message)
    lacks = "target_modules names 'dense_h_to_4h', 'fc1', which this llama model does not have"
    assert lacks in str(caught[1].message)


@pytest.mark.parametrize(
    ("options", "alpha"), [({"alpha": 6.0}, 6.0), ({"alpha": 6.0, "rslora": True}, 6.0 * 4**0.5)]
)
def test_plain_lora_has_pefts_keys_and_the_papers_fields(any_folder, tmp_path, options, alpha):
    model = load_model(str(any_folder))
    attach(model, "paper-lora", r=4, **options)
    randomise(model)
    save_adapter(model, tmp_path / "saved", format="paper")
    raw, tensors = (
        json.loads((tmp_path / "saved" / "adapter_config.json").read_text()),
        read_tensors(tmp_path / "saved"),
    )
    targets = ["query_key_value"] if model.family == "bloom" else ["q_proj", "v_proj"]
    assert (
        raw["r"],
        raw["target_modules"],
        raw["enable_lora"],
        raw["fan_in_fan_out"],
        raw["merge_weights"],
    ) == (4, targets, None, False, False)
    assert raw["lora_alpha"] == pytest.approx(alpha)
    assert all(
        re.fullmatch(
            r"base_model\.model\..*\.(q_proj|v_proj|query_key_value)\.lora_[AB]\.weight", key
        )
        for key in tensors
    )
    assert len(tensors) == 3 * 2 * len(targets)
