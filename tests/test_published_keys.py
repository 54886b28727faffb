"""Published adapters: keys of wrapped models, copies of the base, trained tokens, folders."""

import copy
import json
import re
import warnings

import pytest
import torch
from conftest import write_checkpoint
from families import batch, difference
from peft_bases import (
    ADALORA,
    ALL,
    EMBED,
    FAMILIES,
    IDS,
    QV,
    edit,
    loaded,
    loaded_by_peft,
    logits,
    lora,
    randomised,
    same_logits,
    saved_by_peft,
    theirs_from,
    tiny_bases,
)
from safetensors.torch import load_file, save_file

from adapters import attach, load_adapter, save_adapter
from adapters.attach import adapters_named
from adapters.config import resolve
from adapters.formats.folders import CONFIG, OLD_WEIGHTS, WEIGHTS, read_adapter
from model import UserError, load_model
from model.config import read_config, skeleton


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return tiny_bases(tmp_path_factory.mktemp("published"))


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


# ---------------------------------------------------------------- copies of the base's
COPIES = {
    "beside": lambda family: {},
    "on the embedding": lambda family: {"target_modules": [EMBED[family]]},
    "on the head": lambda family: {"target_modules": [*QV[family], "lm_head"]},
    "on both": lambda family: {"target_modules": [EMBED[family], "lm_head"]},
}


@pytest.mark.parametrize(
    ("family", "row"),
    [*(("llama", row) for row in COPIES), *((family, "on both") for family in FAMILIES[1:])],
)
@pytest.mark.parametrize("trained", [False, True])
def test_copies_of_the_embedding_and_the_head(bases, tmp_path, family, row, trained):
    """save_embedding_layers: PEFT loads what it saved in place of the base's."""
    folder, base = bases[family]
    other = copy.deepcopy(base)
    if trained:
        weights = {
            id(one): one
            for one in (other.get_input_embeddings().weight, other.get_output_embeddings().weight)
        }
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


def test_copies_are_left_out_for_a_model_without_weights(bases, tmp_path):
    """A plan knows shapes alone, so that no copy differs."""
    folder, base = bases["llama"]
    options = {"r": 4, "target_modules": ["q_proj", "embed_tokens"]}
    saved_by_peft(base, tmp_path, "LoraConfig", options, save_embedding_layers=True)
    config, _, _ = read_adapter(skeleton(*read_config(folder)), tmp_path)
    assert (config.kind, config.only.sites) == ("lora", ("q", "embed"))


@pytest.mark.parametrize("kind", ["lora", "tokens"])
def test_a_base_with_more_tokens_is_asked_for(bases, tmp_path, kind):
    folder, base = bases["llama"]
    other = copy.deepcopy(base)
    other.resize_token_embeddings(70, mean_resizing=False)
    options = lora() if kind == "lora" else ("TrainableTokensConfig", {"token_indices": [64, 65]})
    saved_by_peft(other, tmp_path, *options, save_embedding_layers=True)
    with pytest.raises(
        UserError, match=r"its vocabulary was changed.*resize_token_embeddings\(70\)"
    ) as error:
        load_adapter(load_model(str(folder)), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_a_saved_module_of_a_base_with_more_tokens_asks_for_it(bases, tmp_path, name):
    folder, base = bases["llama"]
    other = copy.deepcopy(base)
    other.resize_token_embeddings(75, mean_resizing=False)
    saved_by_peft(other, tmp_path, *lora(modules_to_save=[name]), save_embedding_layers=False)
    with pytest.raises(UserError, match=r"resize_token_embeddings\(75\)$") as error:
        load_adapter(load_model(str(folder)), tmp_path)
    path = {"embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}[name]
    assert f"tensor 'base_model.model.{path}.weight' (modules_to_save) is [75, " in str(error.value)
    assert "\n" not in str(error.value)


def test_another_saved_module_of_another_shape_is_named_by_the_files_key(bases, tmp_path):
    folder, base = bases["llama"]
    saved_by_peft(base, tmp_path, *lora(modules_to_save=["norm"]))
    key = "base_model.model.model.norm.weight"
    tensors = load_file(tmp_path / WEIGHTS)
    save_file(tensors | {key: torch.ones(5)}, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=r"tensor 'base_model.*norm.weight' .* is \[5\]") as error:
        load_adapter(load_model(str(folder)), tmp_path)
    assert str(error.value).endswith(": the adapter is of another base")


def test_what_starts_from_the_base_does_not_take_another_one(bases, tmp_path):
    folder, base = bases["llama"]
    other = copy.deepcopy(base)
    randomised([other.lm_head.weight, other.model.embed_tokens.weight])
    for number, options in enumerate(
        (
            lora(use_dora=True, target_modules=["lm_head"]),
            ("TrainableTokensConfig", {"token_indices": IDS}),
        )
    ):
        saved_by_peft(other, tmp_path / str(number), *options, save_embedding_layers=True)
        with pytest.raises(UserError, match="another part of the adapter starts from it"):
            load_adapter(load_model(str(folder)), tmp_path / str(number))


# ---------------------------------------------------------------- TRAINABLE_TOKENS
@pytest.mark.parametrize("family", FAMILIES)
def test_trainable_tokens_are_token_rows_both_ways(bases, tmp_path, family):
    folder, base = bases[family]
    expected = saved_by_peft(
        base, tmp_path / "theirs", "TrainableTokensConfig", {"token_indices": IDS}
    )
    model, said = loaded(folder, tmp_path / "theirs")
    assert said == []
    assert same_logits(model, expected)
    assert not same_logits(load_model(str(folder)), expected)
    config = next(iter(adapters_named(model, "default").values())).config
    assert (config.kind, list(config.only.options.ids)) == ("token_rows", IDS)
    save_adapter(model, tmp_path / "peft", format="peft")
    save_adapter(model, tmp_path / "native")
    assert json.loads((tmp_path / "peft" / CONFIG).read_text())["peft_type"] == "TRAINABLE_TOKENS"
    assert (
        load_file(tmp_path / "peft" / WEIGHTS).keys()
        == load_file(tmp_path / "theirs" / WEIGHTS).keys()
    )
    assert (
        difference(logits(loaded_by_peft(base, tmp_path / "peft")), expected, batch("left")[1])
        < 1e-4
    )
    for written in ("peft", "native"):
        assert same_logits(loaded(folder, tmp_path / written)[0], expected)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"target_modules": ["lm_head"]},
            "means lm_head: trained rows are known here for the embedding",
        ),
        (
            {"target_modules": ["embed_tokens", "lm_head"]},
            "trained rows are known here for the embedding",
        ),
        (
            {"target_modules": ["embed_tokens", "q_proj"]},
            "trained rows are known here for the embedding",
        ),
        ({"token_indices": []}, "token_indices = .* should be a list of token ids"),
        ({"token_indices": [1, True, 3]}, "should be a list of whole numbers"),
        ({"token_indices": [3, 3, 4]}, "each once"),
        ({"token_indices": [3, 4]}, r"is \[3, 32\], the configuration asks for \[2, 32\]"),
        ({"token_indices": [3, 4, 1000]}, "the model has token ids 0 to 60"),
    ],
)
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
    save_file(
        {key: tensor for key, tensor in tensors.items() if key != head}, str(tmp_path / WEIGHTS)
    )
    assert same_logits(loaded(folder, tmp_path)[0], expected)
    save_file({head: tensors[head]}, str(tmp_path / WEIGHTS))
    assert same_logits(loaded(folder, tmp_path)[0], expected)
    save_file(tensors | {head: tensors[head] + 1}, str(tmp_path / WEIGHTS))
    with pytest.raises(UserError, match="differ, and the head is tied"):
        load_adapter(load_model(str(folder)), tmp_path)


def test_rows_under_a_tied_head_with_a_bias_are_refused_both_ways(tmp_path):
    import peft
    import transformers

    folder = write_checkpoint(tmp_path / "tiny", "gptj", tie_word_embeddings=True)
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs_from(
        base, peft.TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=IDS)
    ).save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match="make PEFT forget the bias of lm_head"):
        load_adapter(load_model(str(folder)), tmp_path / "theirs")
    ours = load_model(str(folder))
    attach(ours, resolve(kind="token_rows", sites=["embed", "head"], ids=IDS))
    with pytest.raises(UserError, match="forgets the bias of a head"):
        save_adapter(ours, tmp_path / "out", format="peft")


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_beside_adalora(bases, tmp_path, family):
    folder, base = bases[family]
    expected = saved_by_peft(
        base, tmp_path, "AdaLoraConfig", ADALORA | {"trainable_token_indices": IDS}
    )
    assert same_logits(loaded(folder, tmp_path)[0], expected)


# ---------------------------------------------------------------- folders
def test_an_adapter_in_a_folder_of_its_name_is_found(bases, tmp_path):
    import peft

    folder, base = bases["llama"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(
            copy.deepcopy(base), peft.LoraConfig(task_type="CAUSAL_LM", r=3), adapter_name="math"
        ).eval()
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
    assert str(error.value).endswith(
        f"there are several below: give {tmp_path / 'code'}, {tmp_path / 'math'}"
    )

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
    with pytest.raises(
        UserError, match=f"there is one below: give {tmp_path / 'runs' / 'first' / 'adapter'}"
    ):
        load_adapter(load_model(str(folder)), tmp_path / "runs")


def test_an_adapter_of_a_repository_in_the_hubs_cache(bases, tmp_path):
    """Its files are links to the repository's blobs, also in a folder of the adapter's name."""
    folder, base = bases["llama"]
    expected = saved_by_peft(base, tmp_path / "models--me--lora" / "blobs", *lora())
    snapshot = tmp_path / "models--me--lora" / "snapshots" / "abc"
    (snapshot / "math").mkdir(parents=True)
    for name in (CONFIG, WEIGHTS):
        (snapshot / "math" / name).symlink_to(f"../../../blobs/{name}")
    assert same_logits(loaded(folder, snapshot)[0], expected)
    assert same_logits(loaded(folder, snapshot / "math")[0], expected)
    (tmp_path / "elsewhere").write_text("{}")
    (snapshot / "math" / CONFIG).unlink()
    (snapshot / "math" / CONFIG).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="outside"):
        load_adapter(load_model(str(folder)), snapshot / "math")


@pytest.mark.parametrize(
    "key", ["", ".", "module", "base_model.model", "base_model.model.", "lora_A.x"]
)
def test_keys_that_are_none(bases, tmp_path, key):
    folder, base = bases["llama"]
    saved_by_peft(base, tmp_path, *lora())
    tensors = load_file(tmp_path / WEIGHTS)
    torch.save(tensors | {key: torch.ones(2)}, tmp_path / OLD_WEIGHTS)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(UserError, match="unknown tensor"):
        load_adapter(load_model(str(folder)), tmp_path)


def test_a_link_out_of_the_folder_is_not_followed(bases, tmp_path):
    folder, base = bases["llama"]
    saved_by_peft(base, tmp_path / "elsewhere", *lora())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "math").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is no adapter folder"):
        load_adapter(load_model(str(folder)), tmp_path / "out")
