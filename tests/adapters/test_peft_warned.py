"""PEFT's soft prompts that are broken, and what is read with a warning."""

import json
import warnings

import pytest
import torch
from conftest import write_checkpoint
from peft_bases import (
    SEEN,
    bases,  # noqa: F401
    made_by_hand,
    theirs_from,
)
from peft_rows import OURS, ours_with
from safetensors.torch import save_file

from adapters import load_adapter, save_adapter
from adapters.attach import adapter_names, adapters_named
from adapters.formats.folders import CONFIG, WEIGHTS
from model import UserError, load_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*LoRA tensor.*have invalid shape:UserWarning"
)  # PEFT, about its own biases of B


def put(folder, fields: dict, tensors: dict[str, torch.Tensor]):
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(fields))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, str(folder / WEIGHTS))
    return folder


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


def test_rows_beside_a_tied_head_with_a_bias_are_refused_both_ways(bases, tmp_path):
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
