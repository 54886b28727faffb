"""Published adapters: fields and their defaults, against the live PEFT."""

import dataclasses

import pytest
from families import batch, difference
from peft_bases import (
    ADALORA,
    FAMILIES,
    IDS,
    bases,  # noqa: F401
    edit,
    loaded,
    loaded_by_peft,
    logits,
    lora,
    same_logits,
    saved_by_peft,
)

from adapters import load_adapter
from adapters.formats.peft_defaults import FEEDFORWARD, TARGETS
from adapters.formats.peft_fields import FIELDS, NO_EFFECT, NOT_COMPUTED
from model import UserError, load_model

# ---------------------------------------------------------------- fields
TRAINERS = {  # as unsloth, axolotl, LLaMA-Factory and PEFT leave them: the logits do not change
    "auto_mapping": {
        "base_model_class": "LlamaForCausalLM",
        "parent_library": "transformers.models.llama",
        "unsloth_fixed": True,
    },
    "revision": "main",
    "peft_version": "0.18.2.dev0@UNKNOWN",
    "inference_mode": False,
    "fan_in_fan_out": True,
    "exclude_modules": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "eva_config": None,
    "corda_config": None,
    "loftq_config": {},
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "layer_replication": None,
    "trainable_token_indices": None,
    "lora_bias": False,
    "use_dora": False,
    "use_qalora": False,
    "qalora_group_size": 16,
    "target_parameters": None,
    "arrow_config": None,
    "alora_invocation_tokens": None,
    "ensure_weight_tying": False,
    "runtime_config": {"ephemeral_gpu_offload": False},
    "merge_weights": True,
    "enable_lora": None,
    "modules_to_save": [],
    "rank_pattern": {},
    "alpha_pattern": {},
    "some_new_config": {"on": False, "of": []},
}
SILENT = {  # what PEFT saves; the fields laid over it; whether PEFT reads that as well
    "trainers": (lora(), TRAINERS, True),
    "fan_in_fan_out, embedding": (
        lora(target_modules=["embed_tokens"]),
        {"fan_in_fan_out": True},
        True,
    ),
    "fan_in_fan_out, dora": (lora(use_dora=True), {"fan_in_fan_out": True}, True),
    "fan_in_fan_out, ia3": (("IA3Config", {}), {"fan_in_fan_out": True}, True),
    "fan_in_fan_out, vera": (("VeraConfig", {"r": 8}), {"fan_in_fan_out": True}, True),
    "what adalora does not look at": (
        ("AdaLoraConfig", ADALORA),
        {
            "use_rslora": True,
            "alpha_pattern": {"q_proj": 3},
            "lora_bias": True,
            "fan_in_fan_out": True,
        },
        True,
    ),
    "nor at its start": (("AdaLoraConfig", ADALORA), {"init_lora_weights": "pissa"}, True),
    "type in small letters": (lora(), {"peft_type": "lora", "task_type": "causal_lm"}, False),
    "type as Python prints it": (
        lora(),
        {"peft_type": "PeftType.LORA", "task_type": "TaskType.CAUSAL_LM"},
        False,
    ),
    "no task": (lora(), {"task_type": None}, True),
    "r by pattern alone": (lora(rank_pattern={"q_proj": 2, "v_proj": 3}), {"r": None}, False),
    "r by pattern, another r": (lora(rank_pattern={"q_proj": 2, "v_proj": 3}), {"r": 64}, True),
    "patterns of nothing": (
        lora(),
        {"rank_pattern": None, "alpha_pattern": None, "bias": None, "lora_dropout": None},
        False,
    ),
    "lora_only": (lora(bias="lora_only"), {}, True),
    "ia3 without feedforward": (("IA3Config", {}), {"feedforward_modules": None}, True),
    "eva": (lora(), {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}, False),
}


@pytest.mark.parametrize("row", SILENT)
def test_fields_that_change_nothing_pass_in_silence(bases, tmp_path, row):
    (kind, options), fields, theirs = SILENT[row]
    folder, base = bases["llama"]
    expected = saved_by_peft(base, tmp_path, kind, options)
    edit(tmp_path, fields)
    model, said = loaded(folder, tmp_path)
    assert said == []
    assert same_logits(model, expected)
    if theirs:
        assert difference(logits(loaded_by_peft(base, tmp_path)), expected, batch("left")[1]) < 1e-5


@pytest.mark.parametrize(
    "kind", ["LoraConfig", "IA3Config", "LNTuningConfig", "TrainableTokensConfig"]
)
def test_keys_that_are_no_settings_are_passed_over_with_a_warning(bases, tmp_path, kind):
    folder, base = bases["llama"]
    options = {"token_indices": IDS} if kind == "TrainableTokensConfig" else {}
    expected = saved_by_peft(base, tmp_path, kind, options)
    more = {
        "task": "question_answering",
        "license": "mit",
        "note": "",
        "score": None,
        "num_virtual_tokens": 20,
        "a\nkey": "a\nvalue",
    }
    edit(tmp_path, more)
    model, said = loaded(folder, tmp_path)
    assert same_logits(model, expected)
    assert len(said) == 1
    first, last = "task = 'question_answering', license = 'mit'", "'a\\nkey' = 'a\\nvalue'"
    assert f"passed over {first}, num_virtual_tokens = 20, {last}: no setting of" in said[0]
    assert difference(logits(loaded_by_peft(base, tmp_path)), expected, batch("left")[1]) < 1e-5


def test_what_changes_the_maths_is_refused_all_at_once_with_what_to_do(bases, tmp_path):
    folder, base = bases["llama"]
    saved_by_peft(base, tmp_path, *lora())
    edit(
        tmp_path,
        {
            "use_qalora": True,
            "layer_replication": [[0, 2], [1, 3]],
            "alora_invocation_tokens": [1, 2],
            "kasa_config": {"beta": 0.1},
            "task": "qa",
            "init_lora_weights": "pissa_niter_4",
        },
    )
    with pytest.raises(UserError) as error:
        load_adapter(load_model(str(folder)), tmp_path)
    said = str(error.value)
    for name in (
        "use_qalora = True",
        "layer_replication = [[0, 2], [1, 3]]",
        "alora_invocation_tokens = [1, 2]",
        "kasa_config = {'beta': 0.1}",
        "init_lora_weights = 'pissa_niter_4'",
        "merge_and_unload",
        "path_initial_model",
    ):
        assert name in said
    assert "\n" not in said
    assert "task" not in said


@pytest.mark.parametrize("version", ["0.22.0", "1.0", "0.30.1.dev0@0123abc"])
def test_a_set_field_of_a_newer_peft_is_refused_and_one_that_is_not_set_passes(
    bases, tmp_path, version
):
    folder, base = bases["llama"]
    expected = saved_by_peft(base, tmp_path, *lora())
    edit(tmp_path, {"peft_version": version, "use_next": False, "next_config": None})
    model, said = loaded(folder, tmp_path)
    assert same_logits(model, expected)
    assert not said
    edit(tmp_path, {"use_next": True, "use_bdlora": {"nblocks": 2}})
    with pytest.raises(
        UserError, match=r"use_bdlora = .*use_next = True: not known here.*delete those"
    ) as error:
        load_adapter(load_model(str(folder)), tmp_path)
    assert version[:4] in str(error.value)


@pytest.mark.parametrize("kind", FIELDS)
def test_every_field_of_the_installed_peft_is_one_of_the_three(kind):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    for field in dataclasses.fields(config):
        read, refused = (
            field.name in FIELDS[kind] | NO_EFFECT,
            field.name in NOT_COMPUTED.get(kind, ()),
        )
        assert read != refused, f"{kind}: {field.name} is not sorted"
    assert FIELDS[kind] <= {
        field.name for field in dataclasses.fields(config)
    }  # read is what PEFT reads


# ---------------------------------------------------------------- target_modules: null
METHODS = {
    "LORA": ("LoraConfig", {"r": 3}),
    "ADALORA": ("AdaLoraConfig", ADALORA),
    "VERA": ("VeraConfig", {"r": 8}),
    "IA3": ("IA3Config", {}),
    "LN_TUNING": ("LNTuningConfig", {}),
    "TRAINABLE_TOKENS": ("TrainableTokensConfig", {"token_indices": IDS}),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", METHODS)
def test_no_target_modules_are_pefts_defaults(bases, tmp_path, family, kind):
    folder, base = bases[family]
    name, options = METHODS[kind]
    missing = (kind, family) == ("LN_TUNING", "opt")  # PEFT asks for them there
    expected = saved_by_peft(
        base,
        tmp_path,
        name,
        options | ({"target_modules": ["final_layer_norm"]} if missing else {}),
    )
    edit(
        tmp_path,
        {"target_modules": None} | ({"feedforward_modules": None} if kind == "IA3" else {}),
    )
    if missing:
        with pytest.raises(UserError, match="target_modules = None names no module"):
            load_adapter(load_model(str(folder)), tmp_path)
        return
    model, said = loaded(folder, tmp_path)
    assert said == []
    assert same_logits(model, expected)


def test_the_defaults_are_those_of_the_installed_peft():
    pytest.importorskip("peft", reason="peft is not installed")
    from peft.utils import constants

    for kind, ours in TARGETS.items():
        theirs = getattr(
            constants, f"TRANSFORMERS_MODELS_TO_{kind.replace('_', '')}_TARGET_MODULES_MAPPING"
        )
        for name in FEEDFORWARD:
            assert ours.get(name) == theirs.get(name), (kind, name)
    for name, ours in FEEDFORWARD.items():
        assert constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[name] == ours
