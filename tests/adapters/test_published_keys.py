"""Published adapters: keys of wrapped models, other names of an adapter."""

import re

import pytest
import torch
from families import batch, difference
from peft_bases import (
    ADALORA,
    ALL,
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
from safetensors.torch import load_file, save_file

from adapters import load_adapter
from adapters.formats.folders import OLD_WEIGHTS, WEIGHTS
from model import UserError, load_model


# ---------------------------------------------------------------- keys
def named(name: str):
    """The key as it is in a model, with the adapter's name."""
    leaves = (
        r"(lora_[ABE]|lora_embedding_[AB]|lora_magnitude_vector|ia3_l|vera_[AB]|vera_lambda_[bd]"
        r"|ln_tuning_layers|trainable_tokens_delta)"
    )
    return lambda key: re.sub(rf"\.{leaves}(?=\.|$)", rf".\1.{name}", key)


KEYS = {
    "default left in": named("default"),
    "another name left in": named("math"),
    "ddp": lambda key: f"module.{key}",
    "compiled": lambda key: f"_orig_mod.{key}",
    "compiled inside": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "fsdp": lambda key: key.replace(
        "base_model.model.", "_fsdp_wrapped_module.base_model.model._fsdp_wrapped_module."
    ),
    "checkpointed": lambda key: key.replace(
        ".self_attn.", "._checkpoint_wrapped_module.self_attn."
    ),
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
    "dora": lora(use_dora=True),
    "adalora": ("AdaLoraConfig", ADALORA),
    "vera": ("VeraConfig", {"r": 8}),
    "ia3": ("IA3Config", {}),
    "hira": ("HiraConfig", {"r": 4}),
    "oft": ("OFTConfig", {"oft_block_size": 4}),
    "ln tuning": ("LNTuningConfig", {}),
    "tokens": ("TrainableTokensConfig", {"token_indices": IDS}),
    "embedding": lora(target_modules=["embed_tokens"]),
    "lora bias": lora(lora_bias=True),
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
    save_file(
        tensors | {"base_model.model.lm_head.original_module.weight": head}, str(tmp_path / WEIGHTS)
    )
    assert same_logits(loaded(folder, tmp_path)[0], expected)


def test_two_adapters_in_one_file_are_refused_by_name(bases, tmp_path):
    folder, base = bases["llama"]
    expected = saved_by_peft(base, tmp_path, *lora())
    tensors = load_file(tmp_path / WEIGHTS)
    both = {
        named(name)(key): tensor + number
        for number, name in enumerate(("math", "code"))
        for key, tensor in tensors.items()
    }
    save_file(both, str(tmp_path / WEIGHTS))
    with pytest.raises(
        UserError, match=r"with different values: the file holds several adapters \(code, math\)"
    ) as error:
        load_adapter(load_model(str(folder)), tmp_path)
    assert "\n" not in str(error.value)
    save_file(
        tensors | {f"module.{key}": tensor.clone() for key, tensor in tensors.items()},
        str(tmp_path / WEIGHTS),
    )
    assert same_logits(loaded(folder, tmp_path)[0], expected)  # the same tensor twice


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({}, "holds no tensor at all"),
        ({"a.lora_A.weight": torch.zeros(0)}, "is empty: it was saved from DeepSpeed"),
    ],
)
def test_files_that_were_saved_empty(bases, tmp_path, tensors, says):
    folder, base = bases["llama"]
    saved_by_peft(base, tmp_path, *lora())
    save_file(tensors, str(tmp_path / WEIGHTS))
    with pytest.raises(UserError, match=says):
        load_adapter(load_model(str(folder)), tmp_path)


def test_the_ranks_of_adalora_by_the_names_of_parameters(bases, tmp_path):
    folder, base = bases["llama"]
    expected = saved_by_peft(
        base, tmp_path, "AdaLoraConfig", ADALORA | {"target_modules": ["q_proj"]}
    )
    names = [
        f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_E.default"
        for layer in range(3)
    ]
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
    torch.save(
        {key: tensor + 1 for key, tensor in load_file(tmp_path / WEIGHTS).items()},
        tmp_path / OLD_WEIGHTS,
    )
    assert same_logits(loaded(folder, tmp_path)[0], expected)
    assert difference(logits(loaded_by_peft(base, tmp_path)), expected, batch("left")[1]) < 1e-5
