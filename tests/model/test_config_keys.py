"""Published config.json files: what is passed over, what is refused, and which classes load."""

import json
import logging

import processes
import pytest
import torch
from conftest import write_checkpoint
from families import TINY, config_of
from processes import ROOT

from model import UserError, load_model
from model.config import MODEL_TYPES, family_and_config, read_config
from model.show import show_text

RUN = ROOT / "run.py"
IDS = torch.tensor([[3, 4, 5, 6]])


def edited(folder, **changes):
    """config.json with these keys changed."""
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(raw))
    return folder


def config_with(changes: dict, family: str = "llama"):
    return family_and_config(config_of(family) | changes, "config.json")[1]


PASSED = [
    # off
    {"sliding_window": None},
    {"use_sliding_window": False},
    {"use_mrope": False},
    {"max_window_layers": 28, "use_sliding_window": False, "sliding_window": 4096},
    {"layer_types": ["full_attention"] * 3},
    {"final_logit_softcapping": None},
    {"query_pre_attn_scalar": None},
    {"alibi": False},
    {"qk_layernorm": False},
    {"some_new": None},
    {"rope_scaling": None, "rope_parameters": None},
    {"rope_scaling": False},
    {"no_rope_layers": []},
    {"quantization": None, "quantization_config": None, "compression_config": None},
    {"attention_bias": None, "mlp_bias": None, "rope_theta": None, "tie_word_embeddings": None},
    {"num_experts": 0, "num_local_experts": 0},
    {"rope_interleaved": False},
    # neutral
    {"partial_rotary_factor": 1.0, "rotary_pct": 1, "is_causal": True, "use_rope": True},
    {"embedding_multiplier": 1.0, "logits_scaling": 1, "residual_multiplier": 1},
    {"rope_scaling": {"rope_type": "default", "factor": None, "rope_theta": None}},
    # of training, saving, serving and generation
    {"unsloth_fixed": True},
    {"unsloth_version": "2024.9"},
    {"_attn_implementation": "eager"},
    {"attn_implementation": "flash_attention_2", "_attn_implementation_internal": "sdpa"},
    {"keys_to_ignore_at_inference": ["past_key_values"], "num_labels": 3},
    {"sequence_parallel_enabled": True, "tensor_parallel_degree": 8, "use_flash_attn": True},
    {"hidden_dropout_prob": 0.1, "resid_pdrop": 0.1, "attention_dropout": 0.2},
    {"eot_token_id": 7, "forced_eos_token_id": 2, "tokenizer_padding_side": "left"},
    {"no_repeat_ngram_size": 3, "length_penalty": 0.6, "max_new_tokens": 64, "num_beams": 4},
    {"_name_or_path": "x", "_commit_hash": None, "license": "mit", "model_max_length": 4096},
    {"is_decoder": True, "is_encoder_decoder": False, "add_cross_attention": False},
]


@pytest.mark.parametrize("changes", PASSED, ids=lambda changes: next(iter(changes)))
def test_what_changes_nothing_is_passed_over(changes):
    said = {
        "layer_types",
        "max_window_layers",
        "rope_scaling",
        "sliding_window",
        "use_sliding_window",
    }
    found, plain = (vars(config_with(some)) for some in (changes, {}))
    assert {**found, **dict.fromkeys(said)} == {**plain, **dict.fromkeys(said)}


def test_the_logits_stay(folder):
    """Of everything in the table that goes together."""
    before = load_model(str(folder))(IDS)
    for changes in PASSED:
        edited(folder, **changes)
    assert torch.equal(load_model(str(folder))(IDS), before)


@pytest.mark.parametrize("family", TINY)
def test_false_and_null_pass_in_every_family(family):
    more = {"use_alibi_slopes": False, "parallel_attn": None, "unsloth_fixed": True, "some": {}}
    assert config_with(more, family) == config_with({}, family)


REFUSED = [
    {"is_causal": False},
    {"use_rope": False},
    {"partial_rotary_factor": 0.5},
    {"embedding_multiplier": 12.0},
    {"qk_layernorm": True},
    {"use_mrope": True},
    {"alibi": True},
    {"num_experts": 8},
    {"final_logit_softcapping": 30.0},
    {"parallel_residual": True},
    {"clip_qkv": 8.0},
    {"is_encoder_decoder": True},
    {"add_cross_attention": True},
    {"mm_vision_tower": "clip"},
    {"vision_config": {"x": 1}},
    {"dual_chunk_attention_config": {"chunk_size": 2}},
    {"draft_vocab_size": 32000},
    {"quantization": {"bits": 4}},
    {"norm_type": "layernorm"},
    {"num_nextn_predict_layers": 1},
]


@pytest.mark.parametrize("changes", REFUSED, ids=lambda changes: next(iter(changes)))
def test_what_may_matter_is_refused_by_name(changes):
    with pytest.raises(UserError, match=f"'{next(iter(changes))}' = .*delete this key from config"):
        config_with(changes)


def test_all_that_may_matter_is_refused_at_once_and_what_passes_is_not_named(folder):
    wrong = {key: value for changes in REFUSED for key, value in changes.items()}
    edited(folder, **wrong, unsloth_fixed=True, some_new=None)
    with pytest.raises(UserError) as error:
        read_config(folder)
    text = str(error.value)
    assert all(f"'{key}'" in text for key in wrong)
    assert "unsloth" not in text
    assert "some_new" not in text
    assert f"{len(wrong)} settings are not known here" in text
    assert "delete these keys from config.json" in text
    assert "\n" not in text


def test_many_and_long_keys_stay_one_line_of_bounded_length():
    with pytest.raises(UserError, match=r"\.\.\., 500 in all") as error:
        config_with({f"key\n{number}" + "x" * 99: "y" * 9999 for number in range(500)})
    assert len(str(error.value)) < 2000
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "max_position_embeddings"])
def test_a_size_that_is_null_is_refused(key):
    with pytest.raises(UserError, match=f"{key} = None should be a whole number"):
        family_and_config(config_of("llama") | {key: None}, "config.json")


def test_a_null_that_would_change_a_default_of_true_is_refused():
    with pytest.raises(UserError, match="do_layer_norm_before = None should be true or false"):
        family_and_config(config_of("opt") | {"do_layer_norm_before": None}, "config.json")


LOADED = [
    None,
    [],
    ["LlamaForCausalLM"],
    ["LLaMAForCausalLM"],
    ["MistralForCausalLM"],
    "LlamaForCausalLM",
    ["FSDPLlamaForCausalLM"],
    ["OptimizedModule"],
    ["PeftModelForCausalLM"],
    ["YiForCausalLM"],
    ["LlamaForCausalLMPipe"],
    ["LlamaLMHeadModel"],
]


@pytest.mark.parametrize("names", LOADED, ids=str)
def test_classes_that_are_causal_models(names):
    assert config_with({"architectures": names}) == config_with({})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("LlamaForCausalLMEagle", "a draft head"),
        ("EagleLlamaModel", "a draft head"),
        ("Eagle3LlamaForCausalLM", "a draft head"),
        ("MedusaModel", "a draft head"),
        ("LlamaMTPForCausalLM", "a draft head"),
        ("DFlashDraftModel", "a draft head"),
        ("LlamaForSequenceClassification", "a classifier"),
        ("LlamaForTokenClassification", "a classifier"),
        ("LlamaForRewardModel", "a classifier"),
        ("Qwen2ForProcessRewardModel", "a classifier"),
        ("LlamaForScore", "a classifier"),
        ("AutoModelForCausalLMWithValueHead", "a classifier"),
        ("LlamaForQuestionAnswering", "an encoder"),
        ("LlamaBiModel", "an encoder"),
        ("LlamaBidirectionalModel", "an encoder"),
        ("LlamaEncoderModel", "an encoder"),
        ("LlavaLlamaForCausalLM", "more than text"),
        ("Qwen2VLForConditionalGeneration", "more than text"),
        ("MixtralForCausalLM", "a mixture of experts"),
        ("LlamaModel", "without an output head"),
        ("SomethingElse", "no causal language model"),
        ("LlamaForDiffusion", "no causal"),
    ],
)
def test_classes_that_are_not_are_refused_by_name(folder, name, said):
    edited(folder, architectures=[name])
    for read in (lambda: read_config(folder), lambda: show_text(str(folder))):
        with pytest.raises(UserError, match=f"architectures names '{name}'.*{said}") as error:
            read()
        assert "\n" not in str(error.value)


def test_a_class_that_is_refused_is_named_before_its_keys(folder):
    edited(folder, architectures=["LlamaForCausalLMEagle3"], draft_vocab_size=32)
    with pytest.raises(UserError, match="'LlamaForCausalLMEagle3', a draft head"):
        read_config(folder)


def test_a_model_without_a_head_will_do_where_the_embedding_is_the_head(tmp_path):
    """Published BLOOM and OPT, and tied LLaMA, saved from the bare decoder."""
    for family, name in (("bloom", "BloomModel"), ("opt", "OPTModel"), ("llama", "LlamaModel")):
        folder = write_checkpoint(tmp_path / family, family, tie_word_embeddings=True)
        load_model(str(edited(folder, architectures=[name])))
    folder = write_checkpoint(tmp_path / "gptj", "gptj")
    with pytest.raises(UserError, match="'GPTJModel', a model without an output head"):
        load_model(str(edited(folder, architectures=["GPTJModel"])))


@pytest.mark.parametrize("names", [7, [None], {"a": 1}, [["LlamaForCausalLM"]]], ids=str)
def test_architectures_that_are_no_names(names):
    with pytest.raises(UserError, match="should be a list of class names"):
        config_with({"architectures": names})


@pytest.mark.parametrize("kind", ["gemma2", "qwen3_moe", "mixtral", "phi3", "LLAMA", None, 7, [1]])
def test_every_other_model_type_is_one_line_with_what_there_is(kind):
    match = "is not supported; choose from llama, mistral, qwen2, qwen3,"
    with pytest.raises(UserError, match=match) as error:
        family_and_config(config_of("llama") | {"model_type": kind}, "config.json")
    assert all(name in str(error.value) for name in MODEL_TYPES)
    assert "\n" not in str(error.value)


def test_what_is_passed_over_is_noted_for_debug_alone(folder, caplog):
    edited(folder, unsloth_fixed=True, some_new=None)
    with caplog.at_level(logging.INFO, logger="model"):
        read_config(folder)
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, logger="model"):
        read_config(folder)
    assert "unsloth_fixed" in caplog.text
    assert "some_new" in caplog.text
    assert "hidden_size" not in caplog.text


def test_the_command_line_shows_the_note_with_debug(folder):
    edited(folder, unsloth_fixed=True)
    done = processes.finish(RUN, "show", "--model", folder, "--debug")
    assert done.returncode == 0
    assert "passed over, as they change nothing here: " in done.stderr
    assert "unsloth_fixed" in done.stderr
