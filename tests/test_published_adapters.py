"""Adapters as people publish them: what PEFT makes of odd configurations and keys, compared with the live library; what is refused, and why."""

import copy
import dataclasses
import json
import re
import warnings

import pytest
import torch
from conftest import write_checkpoint
from families import batch, difference
from peft_bases import (
    ALL,
    EMBED,
    FAMILIES,
    QV,
    loaded_by_peft,
    randomised,
    run_theirs,
    theirs_from,
    tiny_bases,
)
from safetensors.torch import load_file, save_file

from adapters import attach, load_adapter, save_adapter
from adapters.attach import adapter_names, adapters_named
from adapters.files import CONFIG, OLD_WEIGHTS, WEIGHTS
from adapters.peft_defaults import FEEDFORWARD, TARGETS
from adapters.peft_fields import FIELDS, NO_EFFECT, NOT_COMPUTED
from model import UserError, load_model

ADALORA = {"init_r": 5, "target_r": 2, "lora_alpha": 9, "total_step": 50, "tinit": 5, "tfinal": 10}
IDS = [3, 9, 4]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return tiny_bases(tmp_path_factory.mktemp("published"))


def saved_by_peft(base, folder, kind: str, options: dict, **save):
    """A folder that PEFT wrote, with random weights -> PEFT's logits."""
    import peft

    theirs = theirs_from(base, getattr(peft, kind)(task_type="CAUSAL_LM", **options))
    theirs.save_pretrained(folder, **save)
    return logits(theirs)


def logits(theirs):
    ids, mask = batch("left")
    return run_theirs(theirs, ids, mask, soft=False).detach()


def edit(folder, fields: dict | None = None, keys=None) -> None:
    """Change fields of a saved configuration, and the keys of its tensors by a function of a key."""
    if fields:
        raw = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps(raw | fields))
    if keys:
        tensors = load_file(folder / WEIGHTS)
        save_file({keys(key): tensor for key, tensor in tensors.items()}, str(folder / WEIGHTS))


def loaded(base, folder):
    """(our model with the adapter, the warnings that loading gave)."""
    model = load_model(str(base))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_adapter(model, folder)
    said = [str(one.message) for one in caught]
    assert not any("\n" in line for line in said)
    return model, said


def same_logits(model, expected) -> bool:
    ids, mask = batch("left")
    with torch.no_grad():
        return difference(model(ids, mask), expected, mask) < 1e-4


def lora(**options):
    return "LoraConfig", {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]} | options


# ---------------------------------------------------------------- names that the model lacks
ABSENT = {
    "targets": (lora(target_modules=["q_proj", "c_attn", "query_key_value"]),
                "target_modules names ('c_attn', 'query_key_value'|'query_key_value', 'c_attn'),"),
    "a whole path": (lora(target_modules=["v_proj", "model.layers.7.self_attn.q_proj"]),
                     "target_modules names 'model.layers.7.self_attn.q_proj'"),
    "modules to save": (lora(modules_to_save=["lm_head", "classifier", "score"]),
                        "modules_to_save names ('classifier', 'score'|'score', 'classifier'),"),
    "no module to save": (lora(modules_to_save=["score"]), "modules_to_save names 'score'"),
    "layers": (lora(layers_to_transform=[1, 30, 31]), "layers_to_transform names 30, 31"),
    "a layer before the first": (lora(layers_to_transform=[-1, 2]), "layers_to_transform names -1"),
    "everything at once": (lora(target_modules=["q_proj", "wq"], modules_to_save=["norm", "wte"], layers_to_transform=[0, 3]),
                           "target_modules names 'wq' and modules_to_save names 'wte' and layers_to_transform names 3"),
    "ia3": (("IA3Config", {"target_modules": ["k_proj", "down_proj", "fc2"], "feedforward_modules": ["down_proj", "fc2"]}),
            "target_modules names 'fc2'"),
    "ln tuning": (("LNTuningConfig", {"target_modules": ["input_layernorm", "ln_f"]}), "target_modules names 'ln_f'"),
    "adalora": (("AdaLoraConfig", {**ADALORA, "target_modules": ["q_proj", "query"]}), "target_modules names 'query'"),
    "vera": (("VeraConfig", {"r": 8, "target_modules": ["q_proj", "dense"]}), "target_modules names 'dense'"),
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


@pytest.mark.parametrize(("fields", "drop", "says"), [
    ({"target_modules": ["q_proj", "v_prj"]}, None, "unknown target module of a llama model 'v_prj'; did you mean 'v_proj'"),
    ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, None, "k_proj.lora_A.weight' is missing"),
    ({"target_modules": ["q_proj", "v_proj", "c_attn"]}, "layers.1.self_attn.v_proj", "v_proj.lora_A.weight' is missing"),
    ({"target_modules": ["q_proj", "v_proj", "c_attn"], "layers_to_transform": [0, 1]}, None, "unknown target module"),
    ({"layers_to_transform": [0, 1, 2, 3]}, "layers.2.self_attn.v_proj", "v_proj.lora_A.weight' is missing"),
    ({"modules_to_save": ["lm_head", "score"]}, None, "lm_head.weight' is missing"),
    ({"target_modules": ["c_attn", "wq"]}, None, "unknown target module of a llama model 'c_attn'"),
])
def test_a_tensor_without_a_place_or_a_place_without_a_tensor_is_an_error(bases, tmp_path, fields, drop, says):
    folder, base = bases["llama"]
    saved_by_peft(base, tmp_path, *lora())
    edit(tmp_path, fields)
    if drop:
        tensors = load_file(tmp_path / WEIGHTS)
        save_file({key: one for key, one in tensors.items() if drop not in key}, str(tmp_path / WEIGHTS))
    model = load_model(str(folder))
    with pytest.raises(UserError, match=says) as error:
        load_adapter(model, tmp_path)
    assert "\n" not in str(error.value)
    assert not adapter_names(model)


# ---------------------------------------------------------------- fields
TRAINERS = {  # as unsloth, axolotl, LLaMA-Factory and newer versions of PEFT leave them: nothing of it changes the logits
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama", "unsloth_fixed": True},
    "revision": "main", "peft_version": "0.18.2.dev0@UNKNOWN", "inference_mode": False, "fan_in_fan_out": True,
    "exclude_modules": None, "layers_pattern": None, "layers_to_transform": None, "eva_config": None, "corda_config": None,
    "loftq_config": {}, "megatron_config": None, "megatron_core": "megatron.core", "layer_replication": None,
    "trainable_token_indices": None, "lora_bias": False, "use_dora": False, "use_qalora": False, "qalora_group_size": 16,
    "target_parameters": None, "arrow_config": None, "alora_invocation_tokens": None, "ensure_weight_tying": False,
    "runtime_config": {"ephemeral_gpu_offload": False}, "merge_weights": True, "enable_lora": None, "modules_to_save": [],
    "rank_pattern": {}, "alpha_pattern": {}, "some_new_config": {"on": False, "of": []},
}
SILENT = {  # what PEFT saves, and the fields laid over it; PEFT reads that as well, or (False) would not
    "trainers": (lora(), TRAINERS, True),
    "fan_in_fan_out, embedding": (lora(target_modules=["embed_tokens"]), {"fan_in_fan_out": True}, True),
    "fan_in_fan_out, dora": (lora(use_dora=True), {"fan_in_fan_out": True}, True),
    "fan_in_fan_out, ia3": (("IA3Config", {}), {"fan_in_fan_out": True}, True),
    "fan_in_fan_out, vera": (("VeraConfig", {"r": 8}), {"fan_in_fan_out": True}, True),
    "what adalora does not look at": (
        ("AdaLoraConfig", ADALORA),
        {"use_rslora": True, "alpha_pattern": {"q_proj": 3}, "lora_bias": True, "fan_in_fan_out": True}, True),
    "nor at its start": (("AdaLoraConfig", ADALORA), {"init_lora_weights": "pissa"}, True),
    "type in small letters": (lora(), {"peft_type": "lora", "task_type": "causal_lm"}, False),
    "type as Python prints it": (lora(), {"peft_type": "PeftType.LORA", "task_type": "TaskType.CAUSAL_LM"}, False),
    "no task": (lora(), {"task_type": None}, True),
    "r by pattern alone": (lora(rank_pattern={"q_proj": 2, "v_proj": 3}), {"r": None}, False),
    "r by pattern, another r": (lora(rank_pattern={"q_proj": 2, "v_proj": 3}), {"r": 64}, True),
    "patterns of nothing": (lora(), {"rank_pattern": None, "alpha_pattern": None, "bias": None, "lora_dropout": None}, False),
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


@pytest.mark.parametrize("kind", ["LoraConfig", "IA3Config", "LNTuningConfig", "TrainableTokensConfig"])
def test_keys_that_are_no_settings_are_passed_over_with_a_warning(bases, tmp_path, kind):
    folder, base = bases["llama"]
    options = {"token_indices": IDS} if kind == "TrainableTokensConfig" else {}
    expected = saved_by_peft(base, tmp_path, kind, options)
    more = {"task": "question_answering", "license": "mit", "note": "", "score": None, "num_virtual_tokens": 20, "a\nkey": "a\nvalue"}
    edit(tmp_path, more)
    model, said = loaded(folder, tmp_path)
    assert same_logits(model, expected)
    assert len(said) == 1
    assert "passed over task = 'question_answering', license = 'mit', num_virtual_tokens = 20, 'a\\nkey' = 'a\\nvalue': no setting" in said[0]
    assert difference(logits(loaded_by_peft(base, tmp_path)), expected, batch("left")[1]) < 1e-5


def test_what_changes_the_maths_is_refused_all_at_once_with_what_to_do(bases, tmp_path):
    folder, base = bases["llama"]
    saved_by_peft(base, tmp_path, *lora())
    edit(tmp_path, {"use_qalora": True, "layer_replication": [[0, 2], [1, 3]], "alora_invocation_tokens": [1, 2],
                    "kasa_config": {"beta": 0.1}, "task": "qa", "init_lora_weights": "pissa_niter_4"})
    with pytest.raises(UserError) as error:
        load_adapter(load_model(str(folder)), tmp_path)
    said = str(error.value)
    for name in ("use_qalora = True", "layer_replication = [[0, 2], [1, 3]]", "alora_invocation_tokens = [1, 2]",
                 "kasa_config = {'beta': 0.1}", "init_lora_weights = 'pissa_niter_4'", "merge_and_unload", "path_initial_model"):
        assert name in said
    assert "\n" not in said
    assert "task" not in said


@pytest.mark.parametrize("version", ["0.22.0", "1.0", "0.30.1.dev0@0123abc"])
def test_a_set_field_of_a_newer_peft_is_refused_and_one_that_is_not_set_passes(bases, tmp_path, version):
    folder, base = bases["llama"]
    expected = saved_by_peft(base, tmp_path, *lora())
    edit(tmp_path, {"peft_version": version, "use_next": False, "next_config": None})
    model, said = loaded(folder, tmp_path)
    assert same_logits(model, expected)
    assert not said
    edit(tmp_path, {"use_next": True, "use_bdlora": {"nblocks": 2}})
    with pytest.raises(UserError, match=r"use_bdlora = .*use_next = True: not known here.*delete those") as error:
        load_adapter(load_model(str(folder)), tmp_path)
    assert version[:4] in str(error.value)


@pytest.mark.parametrize("kind", FIELDS)
def test_every_field_of_the_installed_peft_is_one_of_the_three(kind):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    for field in dataclasses.fields(config):
        read, refused = field.name in FIELDS[kind] | NO_EFFECT, field.name in NOT_COMPUTED.get(kind, ())
        assert read != refused, f"{kind}: {field.name} is not sorted"
    assert FIELDS[kind] <= {field.name for field in dataclasses.fields(config)}  # read is what PEFT reads


# ---------------------------------------------------------------- target_modules: null
METHODS = {
    "LORA": ("LoraConfig", {"r": 3}), "ADALORA": ("AdaLoraConfig", ADALORA), "VERA": ("VeraConfig", {"r": 8}),
    "IA3": ("IA3Config", {}), "LN_TUNING": ("LNTuningConfig", {}), "TRAINABLE_TOKENS": ("TrainableTokensConfig", {"token_indices": IDS}),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", METHODS)
def test_no_target_modules_are_pefts_defaults(bases, tmp_path, family, kind):
    folder, base = bases[family]
    name, options = METHODS[kind]
    missing = (kind, family) == ("LN_TUNING", "opt")  # PEFT asks for them there
    expected = saved_by_peft(base, tmp_path, name, options | ({"target_modules": ["final_layer_norm"]} if missing else {}))
    edit(tmp_path, {"target_modules": None} | ({"feedforward_modules": None} if kind == "IA3" else {}))
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
        theirs = getattr(constants, f"TRANSFORMERS_MODELS_TO_{kind.replace('_', '')}_TARGET_MODULES_MAPPING")
        for name in FEEDFORWARD:
            assert ours.get(name) == theirs.get(name), (kind, name)
    for name, ours in FEEDFORWARD.items():
        assert constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING[name] == ours


# ---------------------------------------------------------------- keys
def named(name: str):
    """The key as it is in a model, with the adapter's name."""
    leaves = r"(lora_[ABE]|lora_embedding_[AB]|lora_magnitude_vector|ia3_l|vera_[AB]|vera_lambda_[bd]|ln_tuning_layers|trainable_tokens_delta)"
    return lambda key: re.sub(rf"\.{leaves}(?=\.|$)", rf".\1.{name}", key)


KEYS = {
    "default left in": named("default"),
    "another name left in": named("math"),
    "ddp": lambda key: f"module.{key}",
    "compiled": lambda key: f"_orig_mod.{key}",
    "compiled inside": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "fsdp": lambda key: key.replace("base_model.model.", "_fsdp_wrapped_module.base_model.model._fsdp_wrapped_module."),
    "checkpointed": lambda key: key.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
    "twice": lambda key: f"base_model.model.{key}",
    "no prefix": lambda key: key.removeprefix("base_model.model."),
    "all of it": lambda key: "module._orig_mod.base_model.model." + named("default")(key),
}


@pytest.mark.parametrize("row", KEYS)
def test_keys_of_a_wrapped_model_are_read_with_a_warning(bases, tmp_path, row):
    folder, base = bases["llama"]
    expected = saved_by_peft(base, tmp_path, *lora())
    edit(tmp_path, keys=KEYS[row])
    model, said = loaded(folder, tmp_path)
    assert same_logits(model, expected)
    assert len(said) == 1
    assert "12 of 12 keys are not as PEFT writes them" in said[0]


LEFT_IN = {
    "dora": lora(use_dora=True), "adalora": ("AdaLoraConfig", ADALORA), "vera": ("VeraConfig", {"r": 8}), "ia3": ("IA3Config", {}),
    "ln tuning": ("LNTuningConfig", {}), "tokens": ("TrainableTokensConfig", {"token_indices": IDS}),
    "embedding": lora(target_modules=["embed_tokens"]), "lora bias": lora(lora_bias=True),
    "tokens beside": lora(trainable_token_indices=IDS),
}


@pytest.mark.parametrize("row", LEFT_IN)
def test_an_adapters_name_is_taken_out_of_the_keys_of_every_method(bases, tmp_path, row):
    folder, base = bases["llama"]
    expected = saved_by_peft(base, tmp_path, *LEFT_IN[row])
    edit(tmp_path, keys=lambda key: "module." + named("default")(key))
    model, said = loaded(folder, tmp_path)
    assert same_logits(model, expected)
    assert len(said) == 1


def test_dora_as_it_is_in_a_model(bases, tmp_path):
    folder, base = bases["llama"]
    expected = saved_by_peft(base, tmp_path, *lora(use_dora=True))
    edit(tmp_path, keys=lambda key: re.sub("(lora_magnitude_vector)$", r"\1.default.weight", key))
    model, said = loaded(folder, tmp_path)
    assert same_logits(model, expected)
    assert len(said) == 1


@pytest.mark.parametrize("name", [".default", ""])
def test_whole_modules_by_their_keys_in_a_model(bases, tmp_path, name):
    folder, base = bases["gptj"]  # whose head has a bias
    expected = saved_by_peft(base, tmp_path, *lora(modules_to_save=["lm_head", "mlp"]))
    edit(tmp_path, keys=lambda key: re.sub(r"(lm_head|mlp)\.", rf"\1.modules_to_save{name}.", key))
    tensors = load_file(tmp_path / WEIGHTS)
    assert any("mlp.modules_to_save" in key for key in tensors)
    head = base.lm_head.weight.detach().clone()
    save_file(tensors | {"base_model.model.lm_head.original_module.weight": head}, str(tmp_path / WEIGHTS))
    assert same_logits(loaded(folder, tmp_path)[0], expected)


def test_two_adapters_in_one_file_are_refused_by_name(bases, tmp_path):
    folder, base = bases["llama"]
    expected = saved_by_peft(base, tmp_path, *lora())
    tensors = load_file(tmp_path / WEIGHTS)
    both = {named(name)(key): tensor + number for number, name in enumerate(("math", "code")) for key, tensor in tensors.items()}
    save_file(both, str(tmp_path / WEIGHTS))
    with pytest.raises(UserError, match=r"with different values: the file holds several adapters \(code, math\)") as error:
        load_adapter(load_model(str(folder)), tmp_path)
    assert "\n" not in str(error.value)
    save_file(tensors | {f"module.{key}": tensor.clone() for key, tensor in tensors.items()}, str(tmp_path / WEIGHTS))
    assert same_logits(loaded(folder, tmp_path)[0], expected)  # the same tensor twice


@pytest.mark.parametrize(("tensors", "says"), [({}, "holds no tensor at all"), ({"a.lora_A.weight": torch.zeros(0)}, "is empty: it was saved from DeepSpeed")])
def test_files_that_were_saved_empty(bases, tmp_path, tensors, says):
    folder, base = bases["llama"]
    saved_by_peft(base, tmp_path, *lora())
    save_file(tensors, str(tmp_path / WEIGHTS))
    with pytest.raises(UserError, match=says):
        load_adapter(load_model(str(folder)), tmp_path)


def test_the_ranks_of_adalora_by_the_names_of_parameters(bases, tmp_path):
    folder, base = bases["llama"]
    expected = saved_by_peft(base, tmp_path, "AdaLoraConfig", ADALORA | {"target_modules": ["q_proj"]})
    names = [f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_E.default" for layer in range(3)]
    edit(tmp_path, {"rank_pattern": dict.fromkeys(names, [True] * 5)})
    assert same_logits(loaded(folder, tmp_path)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapters_in_16_bits(bases, tmp_path, dtype):
    folder, base = bases["opt"]
    saved_by_peft(base, tmp_path, *lora(use_dora=True, target_modules=ALL["opt"]))
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(tmp_path / WEIGHTS).items()}
    save_file(tensors, str(tmp_path / WEIGHTS))
    model, said = loaded(folder, tmp_path)
    assert same_logits(model, logits(loaded_by_peft(base, tmp_path)))
    assert said == []


def test_of_two_files_of_weights_safetensors_counts(bases, tmp_path):
    folder, base = bases["llama"]
    expected = saved_by_peft(base, tmp_path, *lora())
    torch.save({key: tensor + 1 for key, tensor in load_file(tmp_path / WEIGHTS).items()}, tmp_path / OLD_WEIGHTS)
    assert same_logits(loaded(folder, tmp_path)[0], expected)
    assert difference(logits(loaded_by_peft(base, tmp_path)), expected, batch("left")[1]) < 1e-5


# ---------------------------------------------------------------- copies of the embedding and the head
COPIES = {
    "beside": lambda family: {}, "on the embedding": lambda family: {"target_modules": [EMBED[family]]},
    "on the head": lambda family: {"target_modules": [*QV[family], "lm_head"]},
    "on both": lambda family: {"target_modules": [EMBED[family], "lm_head"]},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("row", COPIES)
@pytest.mark.parametrize("trained", [False, True])
def test_copies_of_the_embedding_and_the_head(bases, tmp_path, family, row, trained):
    """save_embedding_layers: PEFT loads what it saved in place of the base's."""
    folder, base = bases[family]
    other = copy.deepcopy(base)
    if trained:
        weights = {id(one): one for one in (other.get_input_embeddings().weight, other.get_output_embeddings().weight)}
        randomised(weights.values())
    options = {"r": 4, "target_modules": QV[family]} | COPIES[row](family)
    saved_by_peft(other, tmp_path, "LoraConfig", options, save_embedding_layers=True)
    edit(tmp_path, {"base_model_name_or_path": str(folder)})
    model, said = loaded(folder, tmp_path)
    expected = logits(loaded_by_peft(base, tmp_path))
    assert same_logits(model, expected)
    assert len(said) == trained
    assert not trained or "they take its place, as in PEFT" in said[0]
    save_adapter(model, tmp_path / "ours")
    assert same_logits(loaded(folder, tmp_path / "ours")[0], expected)


@pytest.mark.parametrize("kind", ["lora", "tokens"])
def test_a_base_with_more_tokens_is_asked_for(bases, tmp_path, kind):
    folder, base = bases["llama"]
    other = copy.deepcopy(base)
    other.resize_token_embeddings(70, mean_resizing=False)
    options = lora() if kind == "lora" else ("TrainableTokensConfig", {"token_indices": [64, 65]})
    saved_by_peft(other, tmp_path, *options, save_embedding_layers=True)
    with pytest.raises(UserError, match=r"its vocabulary was changed.*resize_token_embeddings\(70\)") as error:
        load_adapter(load_model(str(folder)), tmp_path)
    assert "\n" not in str(error.value)


def test_what_starts_from_the_base_does_not_take_another_one(bases, tmp_path):
    folder, base = bases["llama"]
    other = copy.deepcopy(base)
    randomised([other.lm_head.weight, other.model.embed_tokens.weight])
    for number, options in enumerate((lora(use_dora=True, target_modules=["lm_head"]), ("TrainableTokensConfig", {"token_indices": IDS}))):
        saved_by_peft(other, tmp_path / str(number), *options, save_embedding_layers=True)
        with pytest.raises(UserError, match="another part of the adapter starts from it"):
            load_adapter(load_model(str(folder)), tmp_path / str(number))


# ---------------------------------------------------------------- TRAINABLE_TOKENS
@pytest.mark.parametrize("family", FAMILIES)
def test_trainable_tokens_are_token_rows_both_ways(bases, tmp_path, family):
    folder, base = bases[family]
    expected = saved_by_peft(base, tmp_path / "theirs", "TrainableTokensConfig", {"token_indices": IDS})
    model, said = loaded(folder, tmp_path / "theirs")
    assert said == []
    assert same_logits(model, expected)
    assert not same_logits(load_model(str(folder)), expected)
    config = next(iter(adapters_named(model, "default").values())).config
    assert (config.kind, list(config.only.options.ids)) == ("token_rows", IDS)
    save_adapter(model, tmp_path / "peft", format="peft")
    save_adapter(model, tmp_path / "native")
    assert json.loads((tmp_path / "peft" / CONFIG).read_text())["peft_type"] == "TRAINABLE_TOKENS"
    assert load_file(tmp_path / "peft" / WEIGHTS).keys() == load_file(tmp_path / "theirs" / WEIGHTS).keys()
    assert difference(logits(loaded_by_peft(base, tmp_path / "peft")), expected, batch("left")[1]) < 1e-4
    for written in ("peft", "native"):
        assert same_logits(loaded(folder, tmp_path / written)[0], expected)


@pytest.mark.parametrize(("fields", "says"), [
    ({"target_modules": ["lm_head"]}, "means lm_head: trained rows are known here for the embedding"),
    ({"target_modules": ["embed_tokens", "lm_head"]}, "trained rows are known here for the embedding"),
    ({"target_modules": ["embed_tokens", "q_proj"]}, "trained rows are known here for the embedding"),
    ({"token_indices": []}, "token_indices = .* should be a list of token ids"),
    ({"token_indices": [1, True, 3]}, "should be a list of token ids"),
    ({"token_indices": [3, 3, 4]}, "each once"),
    ({"token_indices": [3, 4]}, r"is \[3, 32\], the configuration asks for \[2, 32\]"),
    ({"token_indices": [3, 4, 1000]}, "the model has token ids 0 to 60"),
])
def test_trainable_tokens_that_do_not_fit(bases, tmp_path, fields, says):
    folder, base = bases["llama"]
    saved_by_peft(base, tmp_path, "TrainableTokensConfig", {"token_indices": IDS})
    edit(tmp_path, fields)
    with pytest.raises(UserError, match=says):
        load_adapter(load_model(str(folder)), tmp_path)


def test_the_rows_of_a_tied_head_are_the_embeddings(bases, tmp_path):
    folder, base = bases["bloom"]
    expected = saved_by_peft(base, tmp_path, "TrainableTokensConfig", {"token_indices": IDS})
    tensors = load_file(tmp_path / WEIGHTS)
    head = next(key for key in tensors if "lm_head" in key)
    save_file({key: tensor for key, tensor in tensors.items() if key != head}, str(tmp_path / WEIGHTS))
    assert same_logits(loaded(folder, tmp_path)[0], expected)
    save_file(tensors | {head: tensors[head] + 1}, str(tmp_path / WEIGHTS))
    with pytest.raises(UserError, match="differ, and the head is tied"):
        load_adapter(load_model(str(folder)), tmp_path)


def test_rows_under_a_tied_head_with_a_bias_are_refused_both_ways(tmp_path):
    import peft
    import transformers

    folder = write_checkpoint(tmp_path / "tiny", "gptj", tie_word_embeddings=True)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs_from(base, peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=IDS)).save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match="make PEFT forget the bias of lm_head"):
        load_adapter(load_model(str(folder)), tmp_path / "theirs")
    ours = load_model(str(folder))
    attach(ours, resolve_rows())
    with pytest.raises(UserError, match="forgets the bias of a head"):
        save_adapter(ours, tmp_path / "out", format="peft")


def resolve_rows():
    from adapters.config import resolve

    return resolve(kind="token_rows", sites=["embed", "head"], ids=IDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_beside_adalora(bases, tmp_path, family):
    folder, base = bases[family]
    expected = saved_by_peft(base, tmp_path, "AdaLoraConfig", ADALORA | {"trainable_token_indices": IDS})
    assert same_logits(loaded(folder, tmp_path)[0], expected)


# ---------------------------------------------------------------- folders
def test_an_adapter_in_a_folder_of_its_name_is_found(bases, tmp_path):
    import peft

    folder, base = bases["llama"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(task_type="CAUSAL_LM", r=3), adapter_name="math").eval()
    randomised(one for one in theirs.parameters() if one.requires_grad)
    theirs.save_pretrained(tmp_path)
    assert not (tmp_path / CONFIG).exists()
    expected = logits(theirs)
    model, said = loaded(folder, tmp_path)
    assert said == []
    assert same_logits(model, expected)

    theirs.add_adapter("code", peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    theirs.save_pretrained(tmp_path)
    with pytest.raises(UserError) as error:
        load_adapter(load_model(str(folder)), tmp_path)
    assert str(error.value).endswith(f"there are several below: give {tmp_path / 'code'}, {tmp_path / 'math'}")

    theirs.add_adapter("default", peft.LoraConfig(task_type="CAUSAL_LM", r=2))
    theirs.save_pretrained(tmp_path)  # "default" lies in the folder itself
    loaded(folder, tmp_path)


@pytest.mark.parametrize("steps", [[500], [500, 1000, 90]])
@pytest.mark.parametrize("below", ["", "math", "adapter_model"])
def test_the_checkpoints_of_a_trainer_are_named(bases, tmp_path, steps, below):
    folder, base = bases["llama"]
    for step in steps:
        saved_by_peft(base, tmp_path / f"checkpoint-{step}" / below, *lora())
    with pytest.raises(UserError, match="a trainer's checkpoints") as error:
        load_adapter(load_model(str(folder)), tmp_path)
    assert str(tmp_path / f"checkpoint-{max(steps)}" / below) in str(error.value)
    assert "\n" not in str(error.value)
    loaded(folder, tmp_path / f"checkpoint-{steps[0]}")
    saved_by_peft(base, tmp_path, *lora())  # the trainer's last word lies above them
    loaded(folder, tmp_path)


def test_an_adapter_further_down_is_named(bases, tmp_path):
    folder, base = bases["llama"]
    saved_by_peft(base, tmp_path / "runs" / "first" / "adapter", *lora())
    with pytest.raises(UserError, match=f"there is one below: give {tmp_path / 'runs' / 'first' / 'adapter'}"):
        load_adapter(load_model(str(folder)), tmp_path / "runs")


def test_a_link_out_of_the_folder_is_not_followed(bases, tmp_path):
    folder, base = bases["llama"]
    saved_by_peft(base, tmp_path / "elsewhere", *lora())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "math").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is no adapter folder"):
        load_adapter(load_model(str(folder)), tmp_path / "out")
