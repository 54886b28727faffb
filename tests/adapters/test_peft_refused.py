"""PEFT files that are broken, of another base, or not what they seem: refused in one line."""

import json
import math

import pytest
import torch
from peft_bases import (
    bases,  # noqa: F401
    made_by_hand,
)
from safetensors.torch import save_file

from adapters import load_adapter
from adapters.attach import adapter_names
from adapters.formats.folders import CONFIG, WEIGHTS
from model import UserError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LoRA tensor.*have invalid shape:UserWarning"
)  # PEFT, about its own biases of B


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
