"""PEFT files that are broken, of another base, or not what they seem: refused in one line."""

import json
import math
import warnings

import pytest
import torch
from conftest import write_checkpoint
from peft_bases import theirs_from
from safetensors.torch import save_file
from test_peft import OURS, SEEN, bases, ours_with, pytestmark  # noqa: F401

from adapters import load_adapter, save_adapter
from adapters.attach import adapter_names, adapters_named
from adapters.formats.folders import CONFIG, WEIGHTS
from model import UserError, load_model


def made_by_hand(folder, r: int = 4) -> tuple[dict, dict[str, torch.Tensor]]:
    """The two files of a LoRA on the queries and values of the tiny LLaMA, without PEFT."""
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(folder),
        "inference_mode": True,
        "r": r,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj"],
    }
    tensors = {}
    for layer in range(3):
        for name, out in (("q_proj", 32), ("v_proj", 16)):
            path = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors |= {
                f"{path}.lora_A.weight": torch.randn(r, 32),
                f"{path}.lora_B.weight": torch.randn(out, r),
            }
    return fields, tensors


def put(folder, fields: dict, tensors: dict[str, torch.Tensor]):
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(fields))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, str(folder / WEIGHTS))
    return folder


Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
E = "base_model.model.model.embed_tokens"
N = "base_model.model.model.norm"
# changes to the fields, changes to the tensors (None takes one out), what the error says
BROKEN = [
    ({"peft_type": "LOHA"}, {}, "peft_type 'LOHA' is not known here; choose from LORA, ADALORA"),
    ({"task_type": "SEQ_CLS"}, {}, "task_type = 'SEQ_CLS' is not CAUSAL_LM"),
    ({"use_qalora": True}, {}, "use_qalora = True: not computed here"),
    ({"use_bdlora": {"nblocks": 2}}, {}, "use_bdlora"),
    ({"layer_replication": [[0, 2]]}, {}, "layer_replication"),
    ({"target_parameters": ["a"]}, {}, "target_parameters"),
    ({"megatron_config": {"a": 1}}, {}, "megatron_config"),
    ({"kasa_config": {}, "velora_config": {"a": 1}}, {}, "velora_config"),
    ({"arrow_config": {"top_k": 3}}, {}, "arrow_config"),
    ({"alora_invocation_tokens": [1, 2]}, {}, "alora_invocation_tokens"),
    ({"enable_lora": [True, False, True]}, {}, "enable_lora"),
    (
        {"invented_next_year": 0.5, "peft_version": "0.99.1"},
        {},
        "invented_next_year = 0.5: not known here",
    ),
    (
        {"init_lora_weights": "pissa"},
        {},
        "init_lora_weights = 'pissa': not computed here.* altered the weights of the base",
    ),
    ({"init_lora_weights": "loftq"}, {}, "init_lora_weights"),
    (
        {"use_dora": True, "target_modules": ["embed_tokens"]},
        {},
        "use_dora = True with an embedding",
    ),
    (
        {"target_modules": ["q_proj", "v_prj"]},
        {},
        "unknown target module of a llama model 'v_prj'; did you mean 'v_proj'",
    ),
    (
        {"target_modules": ["query_key_value"]},
        {},
        "unknown target module of a llama model 'query_key_value'",
    ),
    ({"target_modules": ".*nothing"}, {}, "unknown target module"),
    ({"target_modules": "((("}, {}, "is not a regular expression"),
    (
        {"target_modules": ["q_proj", "input_layernorm"]},
        {},
        "lora works on a Linear or an embedding, and attn_norm .* is a norm",
    ),
    ({"target_modules": 5}, {}, "target_modules = 5 should be a text or a list of texts or null"),
    ({"target_modules": ["q_proj", 5]}, {}, "should be a text or a list of texts"),
    ({"target_modules": []}, {}, "names no module"),
    ({"exclude_modules": ["q_proj", "v_proj"]}, {}, "leaves no module"),
    (
        {"layers_to_transform": [7]},
        {},
        "layers_to_transform names layer 7: the model has layers 0 to 2",
    ),
    (
        {"layers_to_transform": [0, 7]},
        {},
        "layers_to_transform names layer 7.* has no place without it",
    ),
    ({"layers_to_transform": "x"}, {}, "layers_to_transform"),
    (
        {"layers_to_transform": [1], "layers_pattern": "(("},
        {},
        "layers_pattern = .* is not a regular expression",
    ),
    (
        {"layers_to_transform": [1], "target_modules": ".*q_proj"},
        {},
        "does not go with a target_modules that is an expression",
    ),
    ({"layers_to_transform": [1]}, {}, "unknown tensor"),
    ({"r": "x"}, {}, "r = 'x' should be a whole number"),
    ({"r": True}, {}, "r = True should be a whole number"),
    ({"r": -1}, {}, "r = -1 should be a whole number"),
    ({"r": 10**12}, {}, "should be a whole number from 1"),
    ({"r": 2**20}, {}, "the configuration asks for 1048576 rows"),
    ({"r": 3}, {}, r"lora_A.weight' is \[4, 32\], the configuration asks for 3 rows"),
    ({"lora_alpha": "8"}, {}, "lora_alpha = '8' should be a number"),
    ({"lora_alpha": float("inf")}, {}, "lora_alpha = inf should be a number"),
    ({"lora_alpha": 10**400}, {}, "lora_alpha"),
    ({"lora_dropout": 1.5}, {}, "dropout = 1.5 should be a number from 0"),
    ({"use_rslora": "yes"}, {}, "use_rslora = 'yes' should be true or false"),
    ({"rank_pattern": [1]}, {}, "rank_pattern = .* should be a table"),
    ({"rank_pattern": {"q_proj": "4"}}, {}, "rank_pattern = .* should be a whole number"),
    ({"rank_pattern": {"(": 4}}, {}, "is not a regular expression"),
    ({"alpha_pattern": {"q_proj": None}}, {}, "alpha_pattern = .* should be a table of numbers"),
    ({"bias": "some"}, {}, "bias = 'some' should be none, all, lora_only"),
    ({"bias": 3}, {}, "bias = 3 should be"),
    (
        {"modules_to_save": ["nrm"]},
        {f"{N}.weight": torch.ones(32)},
        "unknown module to save of a llama model 'nrm'; did you mean 'norm'",
    ),
    ({"modules_to_save": "lm_head"}, {}, "modules_to_save = 'lm_head' should be a list of texts"),
    ({"modules_to_save": ["lm_head"]}, {}, "lm_head.weight' is missing"),
    (
        {"trainable_token_indices": [1, "2"]},
        {},
        "trainable_token_indices = .* should be a list of whole numbers",
    ),
    (
        {"trainable_token_indices": [99]},
        {f"{E}.token_adapter.trainable_tokens_delta": torch.ones(1, 32)},
        "the model has token ids 0 to 60",
    ),
    (
        {"trainable_token_indices": {"lm_head": [1]}},
        {},
        "trainable_token_indices .* names 'lm_head': trained rows are known here",
    ),
    (
        {"trainable_token_indices": [1], "target_modules": ["q_proj", "v_proj", "embed_tokens"]},
        {},
        "another part of the adapter at the same module",
    ),
    (
        {"trainable_token_indices": [3]},
        {},
        "trainable_tokens_delta' is missing, which modules_to_save, bias or",
    ),
    (
        {"trainable_token_indices": [3]},
        {f"{E}.token_adapter.trainable_tokens_delta": torch.ones(2, 32)},
        r"is \[2, 32\], the configuration asks for \[1, 32",
    ),
    ({}, {f"{Q0}.lora_A.weight": None}, f"tensor '{Q0}.lora_A.weight' is missing"),
    ({}, {f"{Q0}.lora_C.weight": torch.ones(2)}, f"unknown tensor '{Q0}.lora_C.weight'"),
    (
        {},
        {f"{Q0}.lora_B.weight": torch.ones(31, 4)},
        r"lora_B.weight' is \[31, 4\], the configuration asks for \[32, 4\]",
    ),
    ({}, {f"{Q0}.lora_B.weight": torch.full((32, 4), math.nan)}, "holds NaN or infinite values"),
    ({}, {f"{Q0}.lora_B.weight": torch.ones(32, 4, dtype=torch.int64)}, "not as floating point"),
    ({}, {f"{Q0}.lora_A.weight": torch.tensor(1.0)}, r"is \[\], the configuration asks for 4 rows"),
    (
        {},
        {"base_model.model.lm_head.weight": torch.ones(62, 32)},
        r"lm_head.weight' is a copy of the base's \[62, 32\], and this model's is \[61, 32\]",
    ),
    (
        {},
        {"base_model.model.model.embed_tokens.weight": torch.ones(70, 32)},
        "its vocabulary was changed",
    ),
    (
        {"peft_type": "IA3", "feedforward_modules": 3},
        {},
        "feedforward_modules = 3 should be a text or a list of texts",
    ),
    (
        {"peft_type": "VERA", "r": 4, "save_projection": 1},
        {},
        "save_projection = 1 should be true or false",
    ),
    ({"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3}, {}, "'prompt_embeddings' is missing"),
]


@pytest.mark.parametrize(
    ("fields", "tensors", "says"), BROKEN, ids=[says[:40] for *_, says in BROKEN]
)
def test_a_broken_file_is_refused_in_one_line_and_the_model_stays_as_it_was(
    tiny, folder, tmp_path, fields, tensors, says
):
    good_fields, good_tensors = made_by_hand(folder)
    changed = {key: value for key, value in (good_tensors | tensors).items() if value is not None}
    put(tmp_path / "adapter", good_fields | fields, changed)
    before = {name: parameter.clone() for name, parameter in tiny.named_parameters()}
    with pytest.raises(UserError, match=says) as error:
        load_adapter(tiny, tmp_path / "adapter")
    assert "\n" not in str(error.value)
    assert not adapter_names(tiny)
    assert before.keys() == dict(tiny.named_parameters()).keys()
    assert all(torch.equal(before[name], parameter) for name, parameter in tiny.named_parameters())
    put(tmp_path / "adapter", good_fields, good_tensors)
    load_adapter(tiny, tmp_path / "adapter")  # what was broken is the change


SOFT_FIELDS = {"task_type": "CAUSAL_LM", "num_virtual_tokens": 4}


@pytest.mark.parametrize(
    ("fields", "tensors", "says"),
    [
        ({"peft_type": "PREFIX_TUNING"}, {}, "'prompt_embeddings' is missing"),
        (
            {"peft_type": "PREFIX_TUNING"},
            {"prompt_embeddings": torch.ones(4, 100)},
            r"is \[4, 100\], this model's prefix would be \[4, 96\]",
        ),
        (
            {"peft_type": "PREFIX_TUNING"},
            {"prompt_embeddings": torch.ones(3, 96)},
            "asks for 4 rows",
        ),
        (
            {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": None},
            {"prompt_embeddings": torch.ones(4, 96)},
            "num_virtual_tokens = None should be",
        ),
        (
            {"peft_type": "PREFIX_TUNING", "num_transformer_submodules": 2},
            {"prompt_embeddings": torch.ones(4, 96)},
            "encoder-decoder",
        ),
        (
            {"peft_type": "PREFIX_TUNING", "modules_to_save": ["lm_head"]},
            {"prompt_embeddings": torch.ones(4, 96)},
            "modules_to_save",
        ),
        (
            {"peft_type": "PROMPT_TUNING"},
            {"prompt_embeddings": torch.ones(4, 33)},
            r"is \[4, 33\], the configuration asks for \[4, 32\]",
        ),
        (
            {"peft_type": "PROMPT_TUNING"},
            {"prompt_embeddings": torch.ones(4, 32), "more": torch.ones(1)},
            "unknown tensor 'more'",
        ),
        (
            {"peft_type": "P_TUNING", "num_virtual_tokens": 2**19},
            {"prompt_embeddings": torch.ones(4, 32)},
            "asks for 524288 rows",
        ),
        (
            {"peft_type": "MULTITASK_PROMPT_TUNING"},
            {"prompt_embeddings": torch.ones(4, 32)},
            "is not known here",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*does not identify its base")
def test_a_broken_soft_prompt_is_refused(tiny, tmp_path, fields, tensors, says):
    put(tmp_path, SOFT_FIELDS | fields, tensors or {"other": torch.ones(1)})
    with pytest.raises(UserError, match=says) as error:
        load_adapter(tiny, tmp_path)
    assert "\n" not in str(error.value)
    assert not adapter_names(tiny)


def test_rows_beside_a_tied_head_with_a_bias_are_refused_both_ways(bases, tmp_path):  # noqa: F811
    """PEFT computes such a head without its bias. (No published checkpoint has one.)"""
    import peft
    import transformers

    folder = write_checkpoint(tmp_path / "tiny", "gptj", tie_word_embeddings=True)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs_from(
        base, peft.LoraConfig(task_type="CAUSAL_LM", trainable_token_indices=SEEN)
    ).save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match="make PEFT forget the bias of lm_head"):
        load_adapter(load_model(str(folder)), tmp_path / "theirs")
    ours = ours_with(folder, "gptj", OURS["lora and rows"][0])
    with pytest.raises(UserError, match="forgets the bias of a head"):
        save_adapter(ours, tmp_path / "out", format="peft")


def test_an_adapter_of_another_family_is_refused(tmp_path):
    """OPT has modules of the same names as LLaMA, at other paths."""
    folder = write_checkpoint(tmp_path / "opt", "opt")
    put(tmp_path / "adapter", *made_by_hand(folder))
    model = load_model(str(folder))
    with pytest.raises(
        UserError,
        match=r"decoder\.layers\.0\.self_attn\.q_proj\.lora_A\.weight' is missing; the file has",
    ):
        load_adapter(model, tmp_path / "adapter")
    assert not adapter_names(model)


@pytest.mark.parametrize(
    ("said", "warns"),
    [
        (None, "does not identify its base model"),
        ("", "does not identify its base model"),
        (5, "does not identify its base model"),
        ("huggyllama/llama-7b", "was trained on 'huggyllama/llama-7b', this model is"),
        ("me/tiny", None),
        ("TINY", None),
        ("/some/where/tiny/", None),
        (r"C:\models\tiny", None),
        ("/hub/models--me--tiny/snapshots/abc", None),
        ("/hub/models--me--other/snapshots/tiny", "was trained on"),
    ],
)
def test_a_warning_where_the_base_is_not_identified(tiny, folder, tmp_path, said, warns):
    fields, tensors = made_by_hand(folder)
    put(tmp_path / "adapter", fields | {"base_model_name_or_path": said}, tensors)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_adapter(tiny, tmp_path / "adapter")
    assert len(caught) == (warns is not None)
    assert not warns or (warns in str(caught[0].message) and "\n" not in str(caught[0].message))


def test_a_folder_of_the_hubs_cache_goes_by_its_repository(tmp_path):
    folder = write_checkpoint(tmp_path / "models--me--tiny--one" / "snapshots" / "abc")
    model = load_model(str(folder))
    fields, tensors = made_by_hand(folder)
    put(tmp_path / "adapter", fields | {"base_model_name_or_path": "me/tiny--one"}, tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_adapter(model, tmp_path / "adapter")
    save_adapter(model, tmp_path / "out", format="peft")
    assert (
        json.loads((tmp_path / "out" / CONFIG).read_text())["base_model_name_or_path"]
        == "me/tiny--one"
    )


def test_patterns_whose_order_peft_may_have_changed_are_pointed_at(tiny, folder, tmp_path):
    fields, tensors = made_by_hand(folder)
    put(tmp_path / "adapter", fields | {"alpha_pattern": {"q_proj": 4, "layers.0.*": 2}}, tensors)
    with pytest.warns(UserWarning, match="several patterns .* fit model.layers.0.self_attn.q_proj"):
        load_adapter(tiny, tmp_path / "adapter")
    adapters = adapters_named(tiny, "default")
    assert {path: one.scale for path, one in adapters.items() if ".0." in path} == {
        "model.layers.0.self_attn.q_proj": 1.0,
        "model.layers.0.self_attn.v_proj": 0.5,
    }


@pytest.mark.parametrize(
    ("fields", "sites", "layers"),
    [
        ({}, ("q", "v"), "all"),
        (
            {
                "target_modules": [
                    "model.layers.0.self_attn.q_proj",
                    "model.layers.1.self_attn.v_proj",
                ]
            },
            ("model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"),
            "all",
        ),
        ({"layers_to_transform": [1]}, ("q", "v"), (1,)),
    ],
)
def test_what_is_read_has_names_of_sites_where_it_can(
    tiny, folder, tmp_path, fields, sites, layers
):
    from adapters.formats.peft_places import targeted

    good, tensors = made_by_hand(folder)
    good |= fields
    paths = targeted(tiny, good["target_modules"], good.get("layers_to_transform"))
    put(
        tmp_path / "adapter",
        good,
        {
            key: tensor
            for key, tensor in tensors.items()
            if any(f".{path}." in key for path in paths)
        },
    )
    load_adapter(tiny, tmp_path / "adapter")
    part = next(iter(adapters_named(tiny, "default").values())).config.only
    assert (part.sites, part.layers) == (sites, layers)
    save_adapter(tiny, tmp_path / "ours")
    again = load_model(str(folder))
    load_adapter(again, tmp_path / "ours")
    assert adapters_named(again, "default").keys() == adapters_named(tiny, "default").keys()
