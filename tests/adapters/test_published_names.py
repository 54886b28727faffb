"""Published adapters: names of modules that this model has not, against the live PEFT."""

import re

import pytest
from peft_bases import (
    ADALORA,
    FAMILIES,
    QV,
    bases,  # noqa: F401
    edit,
    loaded,
    lora,
    same_logits,
    saved_by_peft,
)
from safetensors.torch import load_file, save_file

from adapters import load_adapter
from adapters.attach import adapter_names
from adapters.formats.folders import WEIGHTS
from model import UserError, load_model

# ---------------------------------------------------------------- names that the model lacks
ABSENT = {
    "targets": (
        lora(target_modules=["q_proj", "c_attn", "query_key_value"]),
        "target_modules names ('c_attn', 'query_key_value'|'query_key_value', 'c_attn'),",
    ),
    "a whole path": (
        lora(target_modules=["v_proj", "model.layers.7.self_attn.q_proj"]),
        "target_modules names 'model.layers.7.self_attn.q_proj'",
    ),
    "modules to save": (
        lora(modules_to_save=["lm_head", "classifier", "score"]),
        "modules_to_save names ('classifier', 'score'|'score', 'classifier'),",
    ),
    "no module to save": (lora(modules_to_save=["score"]), "modules_to_save names 'score'"),
    "layers": (lora(layers_to_transform=[1, 30, 31]), "layers_to_transform names 30, 31"),
    "a layer before the first": (lora(layers_to_transform=[-1, 2]), "layers_to_transform names -1"),
    "everything at once": (
        lora(
            target_modules=["q_proj", "wq"],
            modules_to_save=["norm", "wte"],
            layers_to_transform=[0, 3],
        ),
        "target_modules names 'wq' and modules_to_save names 'wte' and layers_to_transform names 3",
    ),
    "ia3": (
        (
            "IA3Config",
            {
                "target_modules": ["k_proj", "down_proj", "fc2"],
                "feedforward_modules": ["down_proj", "fc2"],
            },
        ),
        "target_modules names 'fc2'",
    ),
    "ln tuning": (
        ("LNTuningConfig", {"target_modules": ["input_layernorm", "ln_f"]}),
        "target_modules names 'ln_f'",
    ),
    "adalora": (
        ("AdaLoraConfig", {**ADALORA, "target_modules": ["q_proj", "query"]}),
        "target_modules names 'query'",
    ),
    "vera": (
        ("VeraConfig", {"r": 8, "target_modules": ["q_proj", "dense"]}),
        "target_modules names 'dense'",
    ),
}


@pytest.mark.parametrize("row", ABSENT)
def test_names_of_other_models_are_passed_over_with_a_warning(bases, tmp_path, row):
    (kind, options), says = ABSENT[row]
    folder, base = bases["llama"]
    expected = saved_by_peft(base, tmp_path, kind, options)
    model, said = loaded(folder, tmp_path)
    assert same_logits(model, expected)
    assert len(said) == 1
    assert re.search(says, said[0])
    assert "every tensor of the file has its place" in said[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recipe_for_all_families_is_read_by_each(bases, tmp_path, family):
    names = sorted({name for names in QV.values() for name in names} | {"c_attn"})
    folder, base = bases[family]
    expected = saved_by_peft(base, tmp_path, *lora(target_modules=names))
    model, said = loaded(folder, tmp_path)
    assert same_logits(model, expected)
    assert len(said) == 1
    assert "c_attn" in said[0]
    assert not any(f"{name!r}" in said[0] for name in QV[family])


@pytest.mark.parametrize(
    ("fields", "drop", "says"),
    [
        (
            {"target_modules": ["q_proj", "v_prj"]},
            None,
            "unknown target module of a llama model 'v_prj'; did you mean 'v_proj'",
        ),
        (
            {"target_modules": ["q_proj", "v_proj", "k_proj"]},
            None,
            "k_proj.lora_A.weight' is missing",
        ),
        (
            {"target_modules": ["q_proj", "v_proj", "c_attn"]},
            "layers.1.self_attn.v_proj",
            "v_proj.lora_A.weight' is missing",
        ),
        (
            {"target_modules": ["q_proj", "v_proj", "c_attn"], "layers_to_transform": [0, 1]},
            None,
            "unknown target module",
        ),
        (
            {"layers_to_transform": [0, 1, 2, 3]},
            "layers.2.self_attn.v_proj",
            "v_proj.lora_A.weight' is missing",
        ),
        ({"modules_to_save": ["lm_head", "score"]}, None, "lm_head.weight' is missing"),
        (
            {"target_modules": ["c_attn", "wq"]},
            None,
            "unknown target module of a llama model 'c_attn'",
        ),
    ],
)
def test_a_tensor_without_a_place_or_a_place_without_a_tensor_is_an_error(
    bases, tmp_path, fields, drop, says
):
    folder, base = bases["llama"]
    saved_by_peft(base, tmp_path, *lora())
    edit(tmp_path, fields)
    if drop:
        tensors = load_file(tmp_path / WEIGHTS)
        save_file(
            {key: one for key, one in tensors.items() if drop not in key}, str(tmp_path / WEIGHTS)
        )
    model = load_model(str(folder))
    with pytest.raises(UserError, match=says) as error:
        load_adapter(model, tmp_path)
    assert "\n" not in str(error.value)
    assert not adapter_names(model)
